"""Compare weights before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.graft import find, root
from ..core.side import key
from ..core.site import Role, Sites
from ..errors import InputError
from ..inference.evaluate import backbone_of, open_run
from ..tuning.adapter import STATISTICS
from ..tuning.adapter_config import AdapterConfig
from ..tuning.adapter_files import read_config
from ..tuning.applying import apply
from ..tuning.tuned import Tuned, merge

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True)
class Change:
    """One parameter before and after.

    Attributes:
        name: Of the parameter; in a plain backbone, or `site path/method/name`.
        part: The name with * for the block, the same for every block; `name` outside of blocks.
        depth: Index of the block; -1 outside of blocks.
        before: Its value as pre-trained, or as it was initialised.
        after: Its value in the run.
    """

    name: str
    part: str
    depth: int
    before: Tensor
    after: Tensor

    @property
    def relative(self) -> float | None:
        """|W' - W| / |W|, Frobenius norms; None where W is zero."""
        norm = float(self.before.double().norm())
        return float((self.after.double() - self.before.double()).norm()) / norm if norm else None

    def to_dict(self) -> dict[str, object]:
        """Summarise in numbers.

        Returns:
            What JSON can hold: name, count, relative change, quantiles before and after.
        """
        return {
            "name": self.name,
            "values": self.after.numel(),
            "relative_change": self.relative,
            "quantiles": list(QUANTILES),
            "before": quantiles(self.before),
            "after": quantiles(self.after),
        }


@dataclass(frozen=True)
class Changes:
    """The parameters that a run changed.

    Attributes:
        items: The parameters, in the order of the model; those that stayed equal are left out.
        unfolded: Empty where the run was folded into the backbone, and before is as pre-trained;
            otherwise why it cannot be, and before is the initialisation of what trains.
    """

    items: tuple[Change, ...]
    unfolded: str

    @property
    def title(self) -> str:
        """Names of the two models that are compared."""
        if self.unfolded:
            return f"what trains: initialisation and after training ({self.unfolded})"
        return "weights as pre-trained, and with the run merged into them"

    def matching(self, pattern: str) -> Changes:
        """Keep some of the parameters.

        Args:
            pattern: Of their names, with * for anything.

        Returns:
            Those that match.

        Raises:
            InputError: None does.
        """
        kept = tuple(c for c in self.items if fnmatch(c.name, pattern))
        if not kept:
            raise InputError(f"no changed parameter matches {pattern!r}")
        return replace(self, items=kept)


def run_changes(folder: Path, checkpoint: Path | None = None) -> Changes:
    """Compare a run's weights with those it began with.

    Where the run folds into the backbone, the backbone's weights as pre-trained are compared with
    the merged ones (the classifier with its initialisation). Where it does not, what trains is
    compared with its initialisation, which the run's seed gives again.

    Args:
        folder: The run folder.
        checkpoint: Where the backbone's weights are now, if not where they were.

    Returns:
        The changes.
    """
    tuned = open_run(folder, checkpoint=checkpoint, device="cpu", original=True).tuned
    sites, trained = tuned.sites, tuned.adapter_state()
    backbone = backbone_of(folder, checkpoint)
    own = dict(backbone.named_parameters())
    config = AdapterConfig.of(read_config(folder), folder)
    head_init = config.backbone.head_init if config.backbone else "trunc_normal"
    start = apply(backbone, *config.methods, num_classes=config.num_classes, head_init=head_init)
    model, unfolded = merge(tuned)
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    if unfolded:
        before, after = _plain(start.adapter_state()), _plain(trained)
    else:
        before, after = own | _head(start), dict(model.named_parameters())
    return Changes(changes(before, after, sites), unfolded[0] if unfolded else "")


def changes(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], sites: Sites
) -> tuple[Change, ...]:
    """Pair parameters by name.

    Args:
        before: Parameters by name; one that is missing (a bias the merge brought) counts as zero.
        after: Parameters by the same names.
        sites: Sites of the backbone, which say where blocks are.

    Returns:
        Those that differ, in the order of `after`.
    """
    blocks = {s.path: s.depth for s in sites.of(Role.BLOCK)}
    found = []
    for name, new in after.items():
        new = new.detach()
        old = before[name].detach() if name in before else torch.zeros_like(new)
        if not torch.equal(old, new):
            found.append(Change(name, *_place(name, blocks), old, new))
    return tuple(found)


def quantiles(x: Tensor, at: Sequence[float] = QUANTILES) -> list[float]:
    """Compute quantiles; exact for any size, where `torch.quantile` refuses large tensors.

    Args:
        x: Values.
        at: Fractions of the values that are to be smaller.

    Returns:
        One value per fraction: the nearest in rank.
    """
    ordered = x.detach().float().flatten().sort().values
    return [float(ordered[round(q * (len(ordered) - 1))]) for q in at]


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k.rpartition("/")[2] not in STATISTICS}


def _head(tuned: Tuned) -> dict[str, nn.Parameter]:
    """The classifier of a tuned model, by names in the plain backbone."""
    return {
        f"{s.path}.{name}": p
        for s in tuned.sites.of(Role.HEAD)
        for name, p in root(find(tuned.backbone, s.path))._parameters.items()
        if p is not None
    }


def _place(name: str, blocks: Mapping[str, int]) -> tuple[str, int]:
    """Split a parameter's name into what is the same for every block, and the block."""
    words = name.replace("/", ".").split(".")
    for path, depth in blocks.items():
        if name.startswith((f"{path}.", f"{path}/")):
            return f"*{name[len(path) :]}", depth
        for word in words:  # a side network's modules are named after sites
            if word == key(path) or word.startswith(f"{key(path)}-"):
                return name.replace(word, f"*{word[len(key(path)) :]}", 1), depth
    return name, -1
