"""Initialise the classifier at a linear probe of the backbone's features.

It is logistic regression for classes, one for each label where an image may have several, and ridge
regression for a number; see `lowtide.targets`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families import logit_maps
from ..targets import Targets
from ..tuning.tuned import Tuned

WORK = 8 * 10**9
"""Products of images, features and classes in a pass over the images, at most."""
MEMORY = 64 << 20
"""Bytes of features, at most."""


def images_for_probe(tuned: Tuned, images: int) -> int:
    """Say how many images a probe is fitted on.

    Args:
        tuned: The model.
        images: How many there are.

    Returns:
        As many as time and memory allow; 0 where the classifier reads no vector per image.
    """
    width = sum(m.in_features for m in probed_maps(tuned))
    if not width:
        return 0
    return min(images, MEMORY // (4 * width), WORK // (width * tuned.num_classes))


def start_at_probe(
    tuned: Tuned,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    targets: Targets,
    seed: int,
) -> bool:
    """Fit every classifier of a tuned model to the features it reads, and start there.

    The features are the model's own as it stands, methods in place, so a method that does not start
    at the backbone is probed where it starts. Two classifiers whose logits are averaged get one
    probe each.

    Args:
        tuned: The model; its classifier is changed in place.
        model: What runs it.
        batches: What that takes, and targets.
        targets: Their kind, which fits.
        seed: Decides the folds.

    Returns:
        Whether there was anything to fit: features of one vector per image, and of classes two.
    """
    maps = probed_maps(tuned)
    given: list[list[Tensor]] = [[] for _ in maps]
    hooks = [
        m.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].float().cpu()))
        for m, seen in zip(maps, given, strict=True)
    ]
    training, truth = model.training, []
    try:
        model.eval()
        with torch.no_grad():
            for images, given_targets in batches:
                model(images.to(maps[0].weight.device))
                truth.append(given_targets)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    y = torch.cat(truth).numpy()
    if any(x.ndim != 2 for seen in given for x in seen):
        return False
    found = [targets.fit(torch.cat(seen).numpy(), y, seed) for seen in given]
    for m, probe in zip(maps, found, strict=True):
        if probe is None:
            return False
        with torch.no_grad():
            m.weight.copy_(torch.from_numpy(probe.weight))
            if m.bias is not None:
                m.bias.copy_(torch.from_numpy(probe.bias))
    return True


def probed_maps(tuned: Tuned) -> list[nn.Linear]:
    """Find the linear maps that give the logits.

    Args:
        tuned: The model.

    Returns:
        The maps; none where something else gives some of the logits.
    """
    maps = logit_maps(tuned.backbone, tuned.heads)
    linear = [m for m in maps if isinstance(m, nn.Linear)]
    return linear if len(linear) == len(maps) else []


def trains_beside(tuned: Tuned) -> bool:
    """Tell whether anything but the logit maps trains.

    Args:
        tuned: The model.

    Returns:
        Whether it does.
    """
    own = {id(p) for m in probed_maps(tuned) for p in m.parameters()}
    return any(p.requires_grad and id(p) not in own for p in tuned.parameters())


def refuse_idle_rate(tuned: Tuned, scale: float, name: str) -> None:
    """Refuse a rate of the classifier's own that would do nothing, or leave nothing that trains.

    Args:
        tuned: The model.
        scale: What the learning rate of its logit maps is to be multiplied by.
        name: What the model is called.

    Raises:
        InputError: It has no such maps, or nothing else trains and they get no rate.
    """
    if scale != 1 and not probed_maps(tuned):
        raise InputError(
            f"head_lr_scale is for linear maps that give the logits, and {name} has none:"
            f" expected 1, not {scale:g}"
        )
    if scale == 0 and not trains_beside(tuned):
        raise InputError("head_lr_scale 0 trains nothing: the classifier is all that would train")
