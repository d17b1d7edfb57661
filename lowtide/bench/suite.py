"""A suite: methods x data sets x learning rates x seeds, declared in one YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ..errors import InputError, UnknownName, shown
from ..training.config import LearningRate, RunConfig, read_yaml
from ..training.options import config_of
from ..training.records import Record
from ..values import Seed, Within, read

SUITE = "suite.yaml"
LONGEST = 100
"""Most bytes of a name, which becomes the name of a folder."""
SCHEMA = 1
"""Version of the file; a file that says none is read as this one."""


@dataclass(frozen=True, kw_only=True)
class SuiteFile(Record):
    """The content of a suite's YAML file.

    Attributes:
        schema: Version of the file.
        defaults: Options of `lowtide train` for every row.
        data: Options by name of a data set; a text alone is its `data`.
        methods: Options by name of a method; a text alone is its `method`.
        lr: A learning rate, or a list to choose from, where neither of the three says another.
        seeds: Each is a row of its own.
    """

    schema: Annotated[int, Within(1, SCHEMA)] = SCHEMA
    defaults: Mapping[str, object] | None = None
    data: Mapping[str | int, object]
    methods: Mapping[str | int, object]
    lr: object = None
    seeds: tuple[Seed, ...] = (0,)

    def __post_init__(self) -> None:
        for name in self.extra:
            raise UnknownName("key of a suite", name, self.fields())
        for key, options in (("data", self.data), ("methods", self.methods)):
            _refuse_names(key, options)
        if not self.seeds:
            raise InputError("seeds must hold one whole number at least")
        if twice := [s for s in self.seeds if self.seeds.count(s) > 1]:
            raise InputError(f"seeds holds {twice[0]} twice: it would count as two runs")


@dataclass(frozen=True)
class Row:
    """One training of a suite.

    Attributes:
        folder: Where its run folder lies, relative to the suite's.
        config: What is run.
    """

    folder: Path
    config: RunConfig


@dataclass(frozen=True)
class Cell:
    """One method on one data set.

    With several learning rates, each is tried with the first seed: learnt on train, scored on val,
    test left alone. The best is then learnt on train and val together, once per seed, and the model
    of the last epoch is tested once.

    Attributes:
        data: Name of the data set.
        group: Name of its group, or empty.
        label: Name of the method.
        searches: Rows that choose the learning rate; empty where only one is given.
        tests: By learning rate, the rows that give the result.
    """

    data: str
    group: str
    label: str
    searches: Mapping[float, Row]
    tests: Mapping[float, tuple[Row, ...]]


@dataclass(frozen=True)
class Suite:
    """The methods, data sets and seeds that are compared.

    Attributes:
        name: Its name: that of its file or folder.
        source: Its YAML text, variables not yet replaced.
        cells: Methods x data sets, in the order of the file.
    """

    name: str
    source: str
    cells: tuple[Cell, ...]

    @classmethod
    def read(cls, path: Path) -> Suite:
        """Read a suite and check every row of it.

        The last epoch is kept unless `keep` says otherwise, as in the papers.

        `defaults`, each of `data` and each of `methods` hold options of `lowtide train`, later ones
        over earlier ones; a name alone is short for its `data` or `method`. `lr` (there or at the
        top) is a number or a list to choose from. `$NAME` in a path is an environment variable,
        `{data}` and `{seed}` in any text are the row's. A data set
        may name its `group`.

        Args:
            path: The file, or a folder that holds `suite.yaml`.

        Returns:
            The suite.

        Raises:
            InputError: There is no such file, or a row cannot be run.
            UnknownName: The file has a key that means nothing.
        """
        path = path / SUITE if path.is_dir() else path
        content = read_suite_file(path)
        defaults = {} if content.lr is None else {"lr": content.lr}
        defaults |= content.defaults or {}
        cells = []
        for data, about in content.data.items():
            for label, method in content.methods.items():
                options = {**defaults, **_options(about, "data"), **_options(method, "method")}
                try:
                    cells.append(_cell(str(data), str(label), options, content.seeds))
                except InputError as e:
                    raise InputError(f"{path}: {label} on {data}: {e}") from e
        folders = [_folder(c.data, c.label) for c in cells]
        if twice := [c for c, f in zip(cells, folders, strict=True) if folders.count(f) > 1]:
            raise InputError(f"{path}: {twice[0].label} and {twice[1].label} share a folder name")
        name = path.resolve().parent.name if path.name == SUITE else path.stem
        return cls(name, path.read_text(encoding="utf-8"), tuple(cells))

    def rows(self) -> Iterator[Row]:
        """List every row that may be run.

        Yields:
            Searches, then tests at every learning rate.
        """
        for cell in self.cells:
            yield from cell.searches.values()
            for tests in cell.tests.values():
                yield from tests


def read_suite_file(path: Path) -> SuiteFile:
    """Read what a suite's file says, before any row is made of it.

    Args:
        path: The YAML file.

    Returns:
        Its content, every field checked.

    Raises:
        InputError: There is no such file, a field of it is wrong, or it is of a newer version.
        UnknownName: The file has a key that means nothing.
    """
    content = read_yaml(path)
    schema = content.get("schema", SCHEMA)
    if type(schema) is int and schema > SCHEMA:
        raise InputError(
            f"{path} is a suite of schema {schema}, and this lowtide reads those up to {SCHEMA}:"
            " run it with the lowtide it was written for"
        )
    try:
        return SuiteFile.from_dict(content)
    except UnknownName:
        raise
    except InputError as e:
        raise InputError(f"{path}: {e}") from e


def _refuse_names(key: str, options: Mapping[str | int, object]) -> None:
    """Refuse names that are no names of folders."""
    if not options:
        raise InputError(f"{key} must map names to options of lowtide train")
    for name in options:
        if not isinstance(name, str | int) or isinstance(name, bool) or not str(name).strip():
            raise InputError(f"{key} must have names of text, not {shown(name)}")
        if len(os.fsencode(str(name))) > LONGEST:
            raise InputError(f"{key}: {shown(name)} is longer than {LONGEST} bytes")


def _options(value: object, short: str) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {short: value}


def _cell(data: str, label: str, options: dict[str, object], seeds: Sequence[int]) -> Cell:
    group = options.pop("group", None)
    group = read("group", str, group) if group else ""
    rates = options.pop("lr", None)
    folder = _folder(data, label)
    configs = [_config(options, data, seed) for seed in seeds]
    rates = _rates(configs[0].method.learning_rate if rates is None else rates)
    searches = {}
    if len(rates) > 1:
        first = replace(configs[0], skip_test=True)
        searches = {
            lr: Row(folder / f"search-lr{lr:g}-seed{seeds[0]}", replace(first, lr=lr))
            for lr in rates
        }
    tests = {
        lr: tuple(
            Row(folder / f"lr{lr:g}-seed{c.seed}", replace(c, lr=lr, train_on_val=True))
            for c in configs
        )
        for lr in rates
    }
    return Cell(data, group, label, searches, tests)


def _rates(given: object) -> list[float]:
    rates = given if isinstance(given, list) else [given]
    if not rates:
        raise InputError("lr must not be an empty list")
    numbers = [read("lr", LearningRate, rate) for rate in rates]
    names = [f"{rate:g}" for rate in numbers]  # which is how folders tell them apart
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"lr holds {twice[0]} twice, to six digits")
    return numbers


def _config(options: Mapping[str, object], data: str, seed: int) -> RunConfig:
    options = {k: _filled(v, data, seed) for k, v in options.items()}
    return config_of({"keep": "last", **options, "seed": seed})


def _filled(value: object, data: str, seed: int) -> object:
    if isinstance(value, str):
        return value.replace("{data}", data).replace("{seed}", str(seed))
    return value


def _folder(data: str, label: str) -> Path:
    return Path(*(re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "-" for name in (data, label)))
