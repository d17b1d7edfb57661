"""Draw how weights changed: one panel per kind of parameter, and the relative changes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from .drawing import AFTER, BEFORE, library, new_figure, styled
from .parameters import Change, quantiles

COLUMNS = 4
MARKS = "osv^D<>*"


def draw_parameters(changes: Sequence[Change], title: str = "") -> Any:
    """Draw distributions before and after.

    Parameters that every block has share a panel: median, quartiles and the middle 98 % of the
    values by block. Any other has a histogram. The last panel has |W' - W| / |W| by block.

    Args:
        changes: What `run_changes` found; at least one.
        title: What was compared.

    Returns:
        The figure.
    """
    parts: dict[str, list[Change]] = {}
    for c in changes:
        parts.setdefault(c.part, []).append(c)
    deep = {part: g for part, g in parts.items() if g[0].depth >= 0}
    moved = {p: [c for c in g if c.relative is not None] for p, g in deep.items()}
    moved = {part: group for part, group in moved.items() if group}
    columns = min(COLUMNS, max(len(parts), 2))
    rows = -(-len(parts) // columns)
    with styled():
        figure = new_figure(2.3 * columns, 1.75 * rows + 2.4 * bool(moved) + 0.3)
        upper, *lower = figure.subfigures(
            1 + bool(moved), 1, height_ratios=[1.75 * rows, 2.4][: 1 + bool(moved)], squeeze=False
        )[:, 0]
        panels = upper.subplots(rows, columns, squeeze=False).flatten()
        for axes, (part, group) in zip(panels, parts.items(), strict=False):
            (_bands if part in deep else _histogram)(axes, group)
            axes.set_title(f"{part}\n{_change(group)}", fontsize=7)
        for axes in panels[len(parts) :]:
            axes.set_visible(False)
        line = library().lines.Line2D([], [], color=BEFORE, lw=0.8, ls=(0, (3, 2)))
        handles = [line, library().patches.Patch(color=AFTER, alpha=0.5)]
        upper.legend(handles, ["before", "after"], loc="outside upper right", ncols=2)
        width = round(14 * (2.3 * columns - 2))  # what the legend leaves, in characters
        upper.suptitle(textwrap.fill(title, width), fontsize=8, x=0.01, ha="left")
        if lower:
            _relative(lower[0], moved)
    return figure


def _bands(axes: Any, group: Sequence[Change]) -> None:
    depth = [c.depth for c in group]
    dot = "." if len(depth) == 1 else ""
    low, q1, median, q3, high = np.transpose([quantiles(c.after) for c in group])
    axes.fill_between(depth, low, high, color=AFTER, alpha=0.25, lw=0)
    axes.fill_between(depth, q1, q3, color=AFTER, alpha=0.45, lw=0)
    axes.plot(depth, median, color=AFTER, lw=1.2, marker=dot)
    for line in np.transpose([quantiles(c.before) for c in group]):
        axes.plot(depth, line, color=BEFORE, lw=0.8, ls=(0, (3, 2)), marker=dot)
    axes.set_xlabel("block")
    axes.set_ylabel("value")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _histogram(axes: Any, group: Sequence[Change]) -> None:
    before, after = (v.float().flatten().numpy() for v in (group[0].before, group[0].after))
    lowest, highest = min(before.min(), after.min()), max(before.max(), after.max())
    edges = np.linspace(lowest, highest, 1 + min(40, 4 + round(after.size**0.5)))
    axes.hist(after, edges, density=True, color=AFTER, alpha=0.5)
    if before.min() == before.max():  # one value throughout: its density has no end
        axes.axvline(before[0], color=BEFORE, lw=0.8, ls=(0, (3, 2)))
    else:
        axes.hist(before, edges, density=True, histtype="step", color=BEFORE, lw=0.8)
    axes.set_xlabel("value")
    axes.set_ylabel("density")


def _change(group: Sequence[Change]) -> str:
    relative = [c.relative for c in group if c.relative is not None]
    if not relative:
        return "from zero"
    low, high = f"{min(relative):.2g}", f"{max(relative):.2g}"
    return f"change {low}" if low == high else f"change {low} to {high}"


def _relative(figure: Any, moved: dict[str, list[Change]]) -> None:
    axes = figure.subplots()
    colours = library().colormaps["tab10"]
    for i, (part, group) in enumerate(moved.items()):
        axes.plot(
            [c.depth for c in group],
            [c.relative for c in group],
            color=colours(i % 10),
            marker=MARKS[i // 10 % len(MARKS)],
            ms=3,
            lw=1,
            label=part,
        )
    every = [c.relative for group in moved.values() for c in group if c.relative]
    if every and max(every) > 10 * min(every):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(library().ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(library().ticker.NullLocator())
    else:
        axes.set_ylim(0)
    axes.set_xlabel("block")
    axes.set_ylabel("relative change |W' - W| / |W|")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside right center", fontsize=7)
