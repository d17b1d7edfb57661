"""A graft on the first layer does not hide how many channels it reads."""

from __future__ import annotations

import pytest
import timm

from lowtide.data import Preprocessing
from lowtide.errors import InputError
from lowtide.methods.ssf import SSF
from lowtide.tuning.applying import apply


@pytest.mark.parametrize("name", ["vit_micro_patch4_32", "resnet18", "test_efficientnet"])
@pytest.mark.parametrize("channels", [1, 4])
def test_channels_after_a_method_on_the_stem(name: str, channels: int) -> None:
    model = timm.create_model(name, in_chans=channels, num_classes=4)
    if hasattr(model, "conv1"):
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (channels, 64, 64)}
    model.in_chans = channels
    tuned = apply(model, SSF())
    if channels == 1:
        assert Preprocessing.of(tuned.backbone).channels == 1
        return
    with pytest.raises(InputError, match="takes 4 channels"):
        Preprocessing.of(tuned.backbone)
