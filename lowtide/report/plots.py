"""The plots: accuracy against a cost, learning curves, shares of memory, confusion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from .compare import front
from .rows import Entry
from .svg import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Scale, drawing, frame, mark, tag

Box = tuple[float, float, float, float]
LETTER, LINE = 6.7, 11.0
"""Width of a letter and height of a line of the plots' small text, about."""


@dataclass(frozen=True)
class Point:
    """A method in a plot.

    Attributes:
        label: Its name.
        cost: Along the axis.
        value: Up.
        text: What is said about it on demand.
    """

    label: str
    cost: float
    value: float
    text: str


def pareto(
    points: Sequence[Point],
    numbers: Mapping[str, int],
    cost: str,
    *,
    log: bool = True,
    metric: str = "accuracy",
) -> Markup:
    """Draw accuracy against a cost, with the line of those that none beats in both.

    Args:
        points: One per method; costs are positive.
        numbers: Number of each method, which gives it colour and mark.
        cost: Name of the cost and its unit.
        log: Whether equal steps along are equal factors.
        metric: What the values are.

    Returns:
        The plot.
    """
    x = Scale.over([p.cost for p in points], LEFT, WIDTH - RIGHT, log)
    y = Scale.over([p.value for p in points], HEIGHT - BOTTOM, TOP)
    best = front([(p.cost, p.value) for p in points])
    spots = [(x(p.cost), y(p.value)) for p in points]
    steps = f"M{spots[best[0]][0]:.1f} {spots[best[0]][1]:.1f}" + "".join(
        f"H{spots[i][0]:.1f}V{spots[i][1]:.1f}" for i in best[1:]
    )
    order = [*best, *(i for i in range(len(points)) if i not in best)]
    places = _labels(
        [points[i].label for i in order],
        [spots[i] for i in order],
        _steps([spots[i] for i in best]),
    )
    drawn = []
    for i, place in zip(order, places, strict=True):
        p = points[i]
        parts = [tag("title", p.text), mark(numbers[p.label], *spots[i])]
        if place:
            parts.append(tag("text", p.label, class_="label", x=place[0], y=place[1]))
        kind = "point front" if i in best else "point"
        drawn.append(tag("g", *parts, class_=kind, data_m=numbers[p.label]))
    return drawing(
        f"Test {metric} against {cost}",
        frame(x, y, cost, f"test {metric}, %"),
        tag("path", class_="pareto", d=f"{steps}H{WIDTH - RIGHT}"),
        *reversed(drawn),
    )


def _labels(
    names: Sequence[str], spots: Sequence[tuple[float, float]], lines: Sequence[Box]
) -> list[tuple[float, float] | None]:
    """Place names beside their points and on no line, the first ones first; None without room."""
    taken = [*((x - 6, y - 6, x + 6, y + 6) for x, y in spots), *lines]
    found: list[tuple[float, float] | None] = []
    for name, (x, y) in zip(names, spots, strict=True):
        wide = LETTER * len(name)
        beside = [(x + 8, y + 3.5), (x - 8 - wide, y + 3.5)]
        over = [(x + dx, y + dy) for dy in (-8, 15) for dx in (-wide / 2, 2, -2 - wide)]
        free = None
        for left, base in [*beside, *over]:
            box = (left - 2, base - LINE + 2, left + wide + 2, base + 2)
            inside = (
                box[0] > LEFT - 2 and box[2] < WIDTH and box[1] > 0 and box[3] < HEIGHT - BOTTOM
            )
            if inside and not any(_overlap(box, other) for other in taken):
                free = (left, base)
                taken.append(box)
                break
        found.append(free)
    return found


def _steps(spots: Sequence[tuple[float, float]]) -> list[Box]:
    """Give the parts of the line of the best, each of which would strike a name through."""
    found: list[Box] = []
    for (x, y), (to_x, to_y) in zip(
        spots, [*spots[1:], (WIDTH - RIGHT, spots[-1][1])], strict=True
    ):
        found += [(x, y - 1, to_x, y + 1), (to_x - 1, min(y, to_y), to_x + 1, max(y, to_y))]
    return found


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves(lines: Mapping[str, Sequence[float]], numbers: Mapping[str, int], name: str) -> Markup:
    """Draw one line per method over epochs.

    Args:
        lines: Values of each epoch by method.
        numbers: Number of each method.
        name: What the values are.

    Returns:
        The plot.
    """
    longest = max(len(v) for v in lines.values())
    x = Scale(0.5 if longest == 1 else 1, max(longest, 1.5), LEFT, WIDTH - RIGHT)
    y = Scale.over([v for values in lines.values() for v in values], HEIGHT - BOTTOM, TOP)
    drawn = []
    for label, values in lines.items():
        n = numbers[label]
        spots = [(x(i), y(v)) for i, v in enumerate(values, 1)]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
        kind = f"curve s{n % COLOURS} d{n // COLOURS % 4}"
        text = f"{label}: {name} {values[-1]:.3g} after {len(values)} epochs"
        parts = [tag("title", text), tag("path", class_=kind, d=path), mark(n, *spots[-1], 3.2)]
        drawn.append(tag("g", *parts, class_="point", data_m=n))
    return drawing(f"{name} by epoch", frame(x, y, "epoch", name), *drawn)


def precision_recall(
    lines: Mapping[str, Sequence[float]],
    numbers: Mapping[str, int],
    what: str,
    *,
    named: bool = False,
) -> Markup:
    """Draw precision against recall of objects found with an IoU of .50.

    Args:
        lines: By name, precision at recalls that are equally far apart from 0 to 1.
        numbers: Number of each line, which gives it its colour.
        what: What is found.
        named: Whether the lines' names stand in the plot; else they are methods, and the page's
            legend has them.

    Returns:
        The plot.
    """
    x, y = Scale(0, 1, LEFT, WIDTH - RIGHT), Scale(0, 1.02, HEIGHT - BOTTOM, TOP)
    drawn = []
    for i, (label, values) in enumerate(lines.items()):
        n, last = numbers[label], max(1, len(values) - 1)
        path = "M" + "L".join(f"{x(j / last):.1f} {y(v):.1f}" for j, v in enumerate(values))
        kind = f"curve s{n % COLOURS} d{n // COLOURS % 4}"
        said = tag("title", f"{label}: AP at IoU .50 {fmean(values):.3f}")
        parts = [said, tag("path", class_=kind, d=path)]
        if named:
            at = HEIGHT - BOTTOM - 10 - 14 * (len(lines) - 1 - i)
            parts += [mark(n, LEFT + 12, at - 3.5, 3.5)]
            parts += [tag("text", label, class_="label", x=LEFT + 22, y=at)]
        drawn.append(tag("g", *parts, class_="point", data_m=None if named else n))
    axes = frame(x, y, "recall", "precision at IoU .50")
    return drawing(f"Precision against recall, {what}", axes, *drawn)


def histories(entries: Sequence[Entry]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Average over seeds what was recorded after each epoch.

    Args:
        entries: The methods on one data set.

    Returns:
        Training loss by method; validation accuracy in percent, that of the row that tried the
        chosen learning rate where the tested rows learnt from the validation images too.
    """
    losses, validated = {}, {}
    for e in entries:
        if loss := _mean([line.train_loss for line in r.history] for r in e.runs):
            losses[e.label] = loss
        for runs in (e.runs, [e.search] if e.search else []):
            scores = _mean([line.validated for line in r.history] for r in runs)
            if scores and e.label not in validated:
                validated[e.label] = [100 * s for s in scores]
    return losses, validated


def _mean(runs: Iterable[Iterable[float | None]]) -> list[float]:
    """Average each epoch that every run has; empty where a run has no such number."""
    known = [[v for v in same if v is not None] for same in zip(*runs, strict=False)]
    return [fmean(v) for v in known] if all(known) and known else []


def bar(parts: Mapping[str, int], order: Sequence[str], longest: int) -> Markup:
    """Draw what a peak is made of as one bar.

    Args:
        parts: Bytes by part.
        order: Every part, from the left; its place gives its colour.
        longest: Bytes of a bar over the whole width.

    Returns:
        A bar as wide as its place.
    """
    at, drawn = 0.0, []
    for i, name in enumerate(order):
        wide = 1000 * parts.get(name, 0) / longest
        if wide:
            title = tag("title", f"{name}: {parts[name] / 2**20:,.1f} MiB")
            drawn.append(tag("rect", title, class_=f"f{i}", x=at, y=0, width=wide, height=10))
        at += wide
    said = ", ".join(f"{n} {s / 2**20:,.1f} MiB" for n, s in parts.items())
    return tag(
        "svg",
        *drawn,
        viewBox="0 0 1000 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=said,
        class_="bar",
    )
