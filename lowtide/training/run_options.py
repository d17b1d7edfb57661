"""The options of a run as its summary stores them, of any version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from ..methods import METHODS
from ..tuning.adapter_files import describe
from ..values import Count, Seed
from .config import LearningRate, RunConfig
from .records import Record


@dataclass(frozen=True, kw_only=True)
class MethodOptions(Record):
    """The method and its options.

    Attributes:
        name: Name of the method; its options are `extra`.
    """

    name: str


@dataclass(frozen=True, kw_only=True)
class RunOptions(Record):
    """The options of a run, as `RunConfig.to_dict` gave them to the version that ran it.

    Attributes:
        model: timm's name of the backbone.
        data: Where the images were.
        method: What trained.
        policy: What was kept for backward.
        lr: Peak learning rate.
        seed: The seed.
        batch_size: Images per update.
        skip_test: Whether the test images were left alone.
    """

    model: str
    data: str
    method: MethodOptions
    policy: str
    lr: LearningRate
    seed: Seed
    batch_size: Count
    skip_test: bool = False

    def completed(self) -> dict[str, object]:
        """Give every option that this version or the run's has.

        Returns:
            The run's options, then those that are newer than the run, at what they come to there.
        """
        given = self.to_dict()
        if self.method.name in METHODS:
            own = describe(METHODS[self.method.name]())
            given["method"] = {**given["method"], **_beside(own, given["method"])}
        then = RunConfig(model="any", data="any", head_init="trunc_normal", keep="last")
        return {**given, **_beside(then.to_dict(), given)}

    @property
    def identity(self) -> str:
        """Equal for runs that differ only in their seed and in options that change no result."""
        options = self.completed()
        del options["seed"], options["workers"]
        return json.dumps(options, sort_keys=True)


def _beside(usual: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in usual.items() if name not in given}
