"""Limits of a candidate: trained parameters, and bytes of its training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..core.method import METHODS, Method
from ..errors import Unsupported
from ..planning.search import parse_bytes
from ..planning.simulate import plan, tune_on_meta
from ..training.config import RunConfig
from ..tuning.backbone import create
from ..tuning.weights import Unfilled
from .evolve import Cost
from .journal import Journal
from .options import Search
from .space import Genes, Space

NEITHER = "unfit"
"""What the journal says of a candidate that the backbone cannot have."""


@dataclass
class Limits:
    """Tells whether candidates stay within the limits; results are kept in the journal.

    Attributes:
        space: Makes a candidate's method.
        config: The run that a candidate is trained in; its step is what is planned.
        classes: Classes of the classifier.
        options: `most_trained` parameters, the classifier apart, and `most_memory` of a step.
        journal: Remembers plans.
        count: Counts what a candidate trains; by default as the method is applied.
    """

    space: Space
    config: RunConfig
    classes: int
    options: Search
    journal: Journal
    count: Callable[[Genes], int] | None = None

    def __post_init__(self) -> None:
        with Unfilled():
            self._shape: nn.Module = create(
                self.config.model,
                pretrained=False,
                image_size=self.config.image_size,
                drop_path=self.config.drop_path,
            )

    def allowed(self, genes: Genes) -> Cost | None:
        """Tell whether a candidate stays within the limits.

        Args:
            genes: The candidate.

        Returns:
            What it takes; None where that is too much, or the backbone cannot have it.
        """
        known = self.journal.get(genes)
        if NEITHER in known:
            return None
        trained = self.count(genes) if self.count else known.get("trained")
        try:
            method = self.space.method(genes)
            if trained is None:
                trained = self._counted(method)
                self.journal.note(genes, trained=trained)
            if self.options.most_trained and trained > self.options.most_trained:
                return None
            if self.options.most_memory is None:
                return Cost(trained)
            peak = known.get("peak_bytes")
            if peak is None:
                peak = self.planned(method)
                self.journal.note(genes, peak_bytes=peak)
        except (Unsupported, ValueError) as reason:
            self.journal.note(genes, **{NEITHER: str(reason)})
            return None
        return Cost(trained, peak) if peak <= parse_bytes(self.options.most_memory) else None

    def planned(self, method: Method) -> int:
        """Plan a candidate's training step.

        Args:
            method: What trains.

        Returns:
            Its peak in bytes.
        """
        return plan(self._shape, method, step=self.config, num_classes=self.classes).peak_bytes

    def _counted(self, method: Method) -> int:
        tuned, probe = (
            tune_on_meta(self._shape, m, num_classes=self.classes)
            for m in (method, METHODS["linear"]())
        )
        return tuned.trainable_counts()[0] - probe.trainable_counts()[0]
