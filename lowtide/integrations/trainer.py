"""transformers' Trainer: a policy while it trains, and small checkpoints of what lowtide tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import InputError
from ..memory.policy import Policy
from ..tuning.tuned import Tuned
from .policy import WhileTraining

ADAPTER = "adapter"


class PolicyCallback(TrainerCallback):
    """Keeps for the backward pass what a policy says, from the first step to the last.

        Trainer(model, arguments, train_dataset=images, callbacks=[PolicyCallback("tight")])

    A model of `lowtide.apply` besides has what trained written to `adapter/` of each checkpoint,
    for `lowtide.load`. After training the model is plain again; if an exception ends the training,
    `lowtide.decompress(model)` makes it so.
    """

    def __init__(self, policy: Policy | str = "tight") -> None:
        """Choose what is kept.

        Args:
            policy: A policy or its name: exact, s2a, blocks or tight.
        """
        self._policy = WhileTraining(policy)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Put the policy in place.

        Args:
            args: The Trainer's arguments.
            state: Where it is.
            control: What it will do.
            **kwargs: `model`, and more of no use here.

        Raises:
            InputError: The arguments ask for gradient checkpointing, which recomputes what the
                policy keeps.
        """
        if args.gradient_checkpointing:
            raise InputError(
                "gradient_checkpointing of the arguments recomputes what a policy keeps: leave it"
                " off, or take policy 'blocks' on a model of lowtide.apply"
            )
        self._policy.begin(kwargs["model"])

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Write what trained beside the Trainer's own files."""
        model: nn.Module = kwargs["model"]
        if isinstance(model, Tuned) and state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            model.save_pretrained(folder / ADAPTER)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Take the policy away."""
        self._policy.end()
