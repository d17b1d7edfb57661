"""The supernet of a search: trained as any run is, and asked for what candidates inherit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..core.site import Role
from ..errors import InputError
from ..families import family_of, measure
from ..methods.noah import NOAH, PARTS
from ..training.callbacks import Callback
from ..training.config import RunConfig
from ..training.loop import CONFIG, SUMMARY, train
from ..training.prepare import Run, prepare
from ..training.progress import note
from ..training.scoring import score_of
from ..tuning.adapter_files import WEIGHTS, read_tensors
from ..tuning.backbone import create
from ..tuning.weights import Unfilled
from .options import Search
from .space import Genes
from .supernet import Supernet
from .widths import WidthSpace, quarters


def width_space(config: RunConfig, options: Search) -> WidthSpace:
    """Build the search space of a backbone.

    Args:
        config: The run; its method names the parts, those with a width, and their dropout.
        options: Widths and depths.

    Returns:
        The candidates.

    Raises:
        InputError: The method is another one, or a depth is more than the backbone has.
    """
    if not isinstance(config.method, NOAH):
        raise InputError(
            f"search looks for the widths of noah, not of {type(config.method).__name__.lower()}:"
            " leave --method out"
        )
    with Unfilled():
        shape = create(config.model, pretrained=False, image_size=config.image_size)
    blocks = len(measure(shape, family_of(shape)).of(Role.BLOCK))
    if wrong := [d for d in options.depths if not 0 < d <= blocks]:
        raise InputError(f"depths must be from 1 to the backbone's {blocks} blocks, not {wrong[0]}")
    return WidthSpace(
        blocks,
        options.widths,
        options.depths or quarters(blocks),
        tuple(part for part in PARTS if any(getattr(config.method, part))),
        config.method.dropout,
        options.mutate_part,
        options.mutate_depth,
    )


def shared_config(config: RunConfig, space: WidthSpace, options: Search) -> RunConfig:
    """Give the config that trains the supernet: longer, and on the training images alone.

    Args:
        config: The run's options.
        space: The candidates.
        options: Epochs and learning rate.

    Returns:
        The config of the supernet's run.
    """
    warmup = config.warmup_epochs
    fits = warmup is not None and warmup < options.supernet_epochs
    return replace(
        config,
        method=space.widest,
        epochs=options.supernet_epochs,
        lr=options.supernet_lr,
        min_lr=min(config.min_lr, options.supernet_lr),
        warmup_epochs=warmup if fits else None,
        keep="last",
        skip_test=True,
    )


def trained_supernet(config: RunConfig, folder: Path, space: WidthSpace) -> tuple[Supernet, Run]:
    """Train the supernet, or finish its training, and load it.

    Args:
        config: What `shared_config` gave.
        folder: Its run folder.
        space: The candidates.

    Returns:
        The supernet, and the run that scores it.

    Raises:
        InputError: There are no images to validate on.
    """
    if not (folder / SUMMARY).exists():
        if not prepare(config, folder).dataset.val:
            raise InputError("search compares on validation images, and there are none")
        note(f"the supernet: {config.epochs} epochs, a candidate drawn for each step")

    class Sharing(Callback):
        def around(self, model: nn.Module) -> nn.Module:
            return Supernet(model, space)  # type: ignore[arg-type]

    begun = (folder / CONFIG).exists()
    train(config, folder, continues=begun, overwrite=True, callbacks=[Sharing()])
    run = prepare(config, folder)
    run.tuned.load_adapter_state(read_tensors(folder / WEIGHTS))
    return Supernet(run.tuned, space).to(run.accelerator.device), run


def inherited_score(run: Run, supernet: Supernet) -> Callable[[Genes], float]:
    """Score candidates on the validation images with the weights they inherit.

    Args:
        run: The supernet's.
        supernet: Holds the weights.

    Returns:
        From a candidate to the run's metric.
    """

    def score(genes: Genes) -> float:
        supernet.chosen = genes
        reached = score_of(run, supernet, run.dataset.val)
        return float("-inf") if reached is None else reached

    return score
