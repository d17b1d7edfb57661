"""Figures: made without a display, saved the same every time."""

from __future__ import annotations

import io
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError
from ..extras import extra
from ..paths import refuse_unwritable, whole

SUFFIXES = (".svg", ".png")
BEFORE, AFTER = "#2b2b2b", "#2f7fc4"
"""Colours of what was there and of what training made of it."""
STYLE = {
    "svg.hashsalt": "lowtide",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
}


def library() -> ModuleType:
    """Import matplotlib, which only drawing needs.

    Returns:
        The module; its `figure` is imported too.
    """
    extra("matplotlib.figure", "plots")
    return extra("matplotlib", "plots")


def new_figure(width: float, height: float) -> Any:
    """Start a figure that belongs to no window.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        A `matplotlib.figure.Figure` that lays itself out.
    """
    return library().figure.Figure(figsize=(width, height), layout="constrained")


def styled() -> Any:
    """Apply the style of all figures while axes are added to one.

    Returns:
        A context manager.
    """
    return library().rc_context(STYLE)


def svg(figure: Any) -> str:
    """Write a figure as SVG: no date, no random names, so the same figure is the same text.

    Args:
        figure: What a drawing function returned.

    Returns:
        The SVG element, without an XML declaration, to be put into HTML as it is.
    """
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def checked(path: str | Path) -> Path:
    """Refuse a figure's file name before anything is computed.

    Args:
        path: The file.

    Returns:
        Its path.

    Raises:
        InputError: Its suffix is neither .svg nor .png.
    """
    if Path(path).suffix not in SUFFIXES:
        raise InputError(f"{path} must end in {' or '.join(SUFFIXES)}")
    library()
    refuse_unwritable(path)
    return Path(path)


def save(figure: Any, path: str | Path) -> None:
    """Write a figure to a file.

    Args:
        figure: What a drawing function returned.
        path: Ends in .svg or .png; its folder is made if missing.
    """
    path = checked(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".svg":
        content = svg(figure).encode("utf-8", "backslashreplace")
    else:
        buffer = io.BytesIO()
        with styled():
            figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        content = buffer.getvalue()
    with whole(path) as partial:
        partial.write_bytes(content)
