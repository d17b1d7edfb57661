"""Several runs of one backbone as one graph: what they share runs once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from ...errors import InputError
from ...families import image_shape
from ...multi_adapter.model import MultiAdapter
from ...training.owner import refuse_unfinished
from ...tuning.adapter_config import AdapterConfig, unfit
from ...tuning.adapter_files import read_config
from ...tuning.tuned import set_frozen_dtype
from ..evaluate import backbone_of
from .logits import noise, preparation


class TaskSet(nn.Module):
    """Images to the logits of each task, in order.

    Attributes:
        names: Of the tasks.
        batches: Noise to make the graph from, and to try it on.
        said: Texts for the graph's header: `model`, `lowtide`, and as JSON `tasks`, the classes of
            each in the order of its logits, and `preprocessing`.
    """

    def __init__(self, runs: Mapping[str, Path], checkpoint: Path | None) -> None:
        """Open the runs.

        Args:
            runs: Folders by name.
            checkpoint: Where the backbone's weights are now, if not where they were.

        Raises:
            InputError: A folder holds no finished run, the backbones differ, or the images are
                prepared in different ways.
        """
        super().__init__()
        for folder in runs.values():
            refuse_unfinished(folder)
        read = {n: AdapterConfig.of(read_config(folder), folder) for n, folder in runs.items()}
        self.names, (first, *_) = tuple(read), read.values()
        for name, config in read.items():
            if config.preprocessing is None or config.augment is None:
                raise InputError(unfit(runs[name]))
        made = preparation(first.preprocessing or {}, first.augment or "")
        for name, config in read.items():
            if preparation(config.preprocessing or {}, config.augment or "") != made:
                raise InputError(
                    f"{name} prepares images otherwise than {self.names[0]}, and one graph takes"
                    " one batch: export them apart"
                )
            if (config.frozen_dtype or "fp32") != (first.frozen_dtype or "fp32"):
                raise InputError(f"{name} and {self.names[0]} have other frozen dtypes")
        folder = runs[self.names[0]]
        backbone = backbone_of(folder, checkpoint, first.frozen_dtype or "fp32")
        set_frozen_dtype(backbone, "fp32")
        self.model = MultiAdapter(backbone, runs, rows_at_once=None)
        channels, *size = image_shape(backbone)
        self.batches = noise(channels, size)
        self.said = {
            "model": first.backbone.name if first.backbone else "",
            "lowtide": version("lowtide"),
            "tasks": json.dumps({name: list(c.classes or ()) for name, c in read.items()}),
            "preprocessing": json.dumps(made),
        }

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify for every task.

        Args:
            images: Normalised, `(B, C, H, W)`.

        Returns:
            `(B, K)` of each task.
        """
        return tuple(self.model(images).values())
