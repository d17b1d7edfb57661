"""What differs between versions of timm and torch."""

from __future__ import annotations

import torch
from torch import nn

from lowtide.versions import classes, on_meta


def test_classes_that_a_version_lacks_are_left_out() -> None:
    assert classes("torch.nn", "Linear", "NoSuchLayer", "ReLU") == (nn.Linear, nn.ReLU)
    assert classes("torch.no_such_module", "Linear") == ()


def test_models_are_made_on_meta_though_they_read_drop_path_rates_as_numbers() -> None:
    with on_meta():
        rates = [x.item() for x in torch.linspace(0, 0.5, 3)]
        map_ = nn.Linear(3, 4)
    assert rates == [0, 0.25, 0.5] and map_.weight.is_meta
    assert torch.linspace(0, 1, 2).device.type == "cpu" and not torch.zeros(1).is_meta
