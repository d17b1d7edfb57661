"""Which tasks a server answers, and where their files may come from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..data.preprocessing import Augment, Preprocessing, Transform
from ..errors import InputError, UnknownName, shown
from ..targets import construct
from ..targets.kind import Targets
from ..training.owner import refuse_unfinished
from ..tuning.adapter_config import AdapterConfig, unfit
from ..tuning.adapter_files import CONTENT, read_config
from ..values import read as read_value
from .limits import Refused

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Task:
    """One adapter that is served.

    Attributes:
        name: Its name in addresses.
        folder: Its run's folder.
        content: Hash of its tensors, which tells it from another under the same name.
        config: What its files say.
        transform: The evaluation transform.
        targets: What was learnt: how outputs become an answer.
    """

    name: str
    folder: Path
    content: str
    config: AdapterConfig
    transform: Transform
    targets: Targets

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes, in the order of the logits."""
        return self.config.classes or ()

    def described(self) -> dict[str, object]:
        """Describe the task to a client.

        Returns:
            Plain JSON; no paths of this machine.
        """
        size = self.transform.preprocessing.size
        return {"name": self.name, "classes": list(self.classes), "image_size": list(size)}


def task_of(name: str, folder: Path) -> Task:
    """Read what a run's files say; its tensors are not loaded.

    Args:
        name: Its name in addresses.
        folder: The folder of a finished run.

    Returns:
        The task.

    Raises:
        InputError: The name is none, or the folder holds no finished run.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"a task's name has letters, digits, '_', '.' and '-', 64 at most, not {shown(name)}"
        )
    refuse_unfinished(folder)
    content = read_config(folder)
    config = AdapterConfig.of(content, folder)
    if config.preprocessing is None or config.augment is None or config.classes is None:
        raise InputError(unfit(folder))
    transform = Preprocessing.from_dict(config.preprocessing).transform(
        train=False, augment=read_value("augment", Augment, config.augment)
    )
    targets = construct(config.classes, config.targets)
    return Task(name, folder, str(content.get(CONTENT, "")), config, transform, targets)


def named_runs(given: Iterable[str]) -> dict[str, Path]:
    """Read `NAME=RUN` or `RUN`, whose folder's name it then is.

    Args:
        given: As on the command line.

    Returns:
        Folders by name.

    Raises:
        InputError: A name is given twice.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        name = name if equals else path.resolve().name
        if name in found:
            raise InputError(f"two runs are named {name}: give NAME=RUN")
        found[name] = path
    return found


class Tasks:
    """The tasks that are served now."""

    def __init__(self, runs: Mapping[str, Path], root: Path | None) -> None:
        """Read the first tasks.

        Args:
            runs: Folders by name.
            root: The folder whose runs may be added while it serves; None for none.

        Raises:
            InputError: A folder holds no finished run, or they are of several backbones.
        """
        self._served = {name: task_of(name, folder) for name, folder in runs.items()}
        self._root = root.resolve() if root else None
        first = next(iter(self._served.values()), None)
        for task in self._served.values():
            self._refuse_other(task, first)

    @property
    def all(self) -> tuple[Task, ...]:
        """Every task, in the order they were added."""
        return tuple(self._served.values())

    def __getitem__(self, name: str) -> Task:
        if name not in self._served:
            raise Refused(404, str(UnknownName("task", name, self._served)))
        return self._served[name]

    def found(self, name: str, folder: object) -> Task:
        """Read the files of a task that is to be added.

        Args:
            name: Its name.
            folder: Its folder, below the one that may be served from.

        Returns:
            The task.

        Raises:
            Refused: It may not be, or its folder holds no run for this backbone.
        """
        path = self._below(folder if folder is not None else name)
        if name in self._served:
            raise Refused(409, f"task {shown(name)} is served; remove it first")
        try:
            task = task_of(name, path)
            self._refuse_other(task, next(iter(self._served.values()), None))
        except (InputError, OSError) as e:
            raise Refused(400, self.told(str(e))) from e
        return task

    def add(self, task: Task) -> None:
        """Serve a task.

        Args:
            task: What `found` gave, loaded by the worker.
        """
        self._served[task.name] = task

    def remove(self, name: str) -> Task:
        """Stop serving a task.

        Args:
            name: Which.

        Returns:
            The task.

        Raises:
            Refused: Tasks are fixed, or there is no such task.
        """
        self._below(".")
        self[name]  # or 404
        if len(self._served) == 1:
            raise Refused(409, f"{shown(name)} is the last task; a server keeps one")
        return self._served.pop(name)

    def told(self, message: str) -> str:
        """Remove this machine's folders from a message to a client.

        Args:
            message: The message.

        Returns:
            The same, with paths below the folder that is served from.
        """
        return message.replace(f"{self._root}/", "") if self._root else message

    def _below(self, folder: object) -> Path:
        if self._root is None:
            raise Refused(403, "tasks are fixed: start the server with --adapters FOLDER")
        if not isinstance(folder, str) or "\0" in folder:
            raise Refused(400, f"a folder is a path below --adapters, not {shown(folder)}")
        try:
            path = (self._root / folder).resolve()
        except (OSError, RuntimeError) as e:
            raise Refused(400, f"{shown(folder)} is no folder") from e
        if path != self._root and self._root not in path.parents:
            raise Refused(403, f"{shown(folder)} is not below --adapters")
        return path

    def _refuse_other(self, task: Task, first: Task | None) -> None:
        if first is None:
            return
        for what in ("base_model_sha256", "frozen_dtype"):
            here, there = getattr(task.config, what), getattr(first.config, what)
            if (here or "fp32") != (there or "fp32"):
                raise InputError(
                    f"tasks {task.name} and {first.name} have backbones of different"
                    f" {'weights' if what == 'base_model_sha256' else 'frozen dtypes'}; start a"
                    " server for each"
                )
