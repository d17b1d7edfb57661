"""Which classes are learnt, and which are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from markupsafe import Markup

from ..training.mistakes import Mistake, read_mistakes
from .cells import Cell, Column, Table
from .rows import Entry
from .svg import drawing, tag
from .tables import Board

MOST = 40
"""Classes that a heat map shows."""
PAIRS = 15
SIDE = 300.0
NUMBERED = 12
"""Classes up to which a heat map has room for numbers."""

Counts = Mapping[tuple[int, int], int]
C = TypeVar("C", bound=Hashable)


def confusion(entry: Entry) -> Counts:
    """Count test images by true and predicted class.

    Args:
        entry: A method on a data set.

    Returns:
        Counts over all seeds; empty where rows recorded none.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for run in entry.runs:
        for true, predicted, count in run.test_confusion or ():
            counts[true, predicted] += count
    return counts


def mistakes(entry: Entry) -> list[Mistake]:
    """Read the most confident errors of a method's first row that kept some.

    Args:
        entry: A method on a data set.

    Returns:
        At most 16, the most confident first.
    """
    return next((found for f in entry.result.folders if (found := read_mistakes(f))), [])


def class_names(entries: Sequence[Entry]) -> list[str]:
    """Name the classes of a data set.

    Args:
        entries: The methods on it.

    Returns:
        Their names in order of their numbers.
    """
    return next((list(r.data.classes) for e in entries for r in e.runs), [])


def class_accuracy(counts: Counts) -> dict[int, float]:
    """Compute the share of each class that was recognised.

    Args:
        counts: Images by true and predicted class.

    Returns:
        Accuracy by class, of those that have test images.
    """
    totals = sorted(_by_class(counts).items())
    return {c: counts.get((c, c), 0) / n for c, n in totals if n}


def _by_class(counts: Counts) -> Counter[int]:
    """Count the test images of each true class."""
    totals: Counter[int] = Counter()
    for (true, _), count in counts.items():
        totals[true] += count
    return totals


def class_table(board: Board) -> Table | None:
    """Tell how well each method knows each class.

    Args:
        board: The methods on a data set.

    Returns:
        A heat map of methods by classes, of many classes the hardest; None where rows have no
        confusion.
    """
    known = {e.label: class_accuracy(confusion(e)) for e in board.entries}
    known = {label: scores for label, scores in known.items() if scores}
    if not known:
        return None
    names = class_names(board.entries)
    tested = {i: n for i, n in enumerate(names) if any(i in scores for scores in known.values())}
    return heat_table(f"{board.data}: accuracy of each class, %", known, tested, len(names))


def heat_table(
    title: str, known: Mapping[str, Mapping[C, float]], names: Mapping[C, str], total: int
) -> Table:
    """Lay scores of classes out as a heat map, of many classes the hardest.

    Args:
        title: What they are.
        known: Scores by method and class.
        names: Of the classes that have some, in their order.
        total: How many classes there are.

    Returns:
        A row per method.
    """
    classes = list(names)
    if len(classes) > MOST:
        hardness = {c: fmean(s[c] for s in known.values() if c in s) for c in classes}
        hardest = set(sorted(classes, key=lambda c: hardness[c])[:MOST])
        classes = [c for c in classes if c in hardest]
        title += f", the {MOST} hardest of {total} classes"
    shown = [scores[c] for scores in known.values() for c in classes if c in scores]
    rows = tuple(
        (Cell(label, label), *(_shaded(scores.get(c), min(shown), max(shown)) for c in classes))
        for label, scores in known.items()
    )
    return Table(title, (Column("method", False), *(Column(names[c]) for c in classes)), rows)


def _shaded(score: float | None, low: float, high: float) -> Cell:
    """Write a score between 0 and 1 as a field of a heat map, in percent."""
    if score is None:
        return Cell()
    share = (score - low) / (high - low) if high > low else 0.5
    return Cell(f"{100 * score:.0f}", score, shade=min(int(10 * share), 9))


def pairs_table(entry: Entry) -> Table:
    """List the classes that are most often taken for others.

    Args:
        entry: A method on a data set of many classes.

    Returns:
        True class, predicted class and share of the true class, most images first.
    """
    counts, names = confusion(entry), class_names([entry])
    totals = _by_class(counts)
    wrong = sorted((-n, true, taken) for (true, taken), n in counts.items() if true != taken)
    return Table(
        f"{entry.label}: most confused pairs of {len(names)} classes",
        (Column("is", False), Column("taken for", False), Column("images"), Column("% of class")),
        tuple(
            (
                Cell(names[true], names[true]),
                Cell(names[taken], names[taken]),
                Cell(f"{-n:d}", -n),
                Cell(f"{100 * -n / totals[true]:.0f}", -n / totals[true]),
            )
            for n, true, taken in wrong[:PAIRS]
        ),
    )


def heat_map(entry: Entry) -> Markup:
    """Draw a confusion matrix, each row in shares of its true class.

    Args:
        entry: A method on a data set of few classes.

    Returns:
        The plot: true classes down, predicted ones across.
    """
    counts, names = confusion(entry), class_names([entry])
    totals = _by_class(counts)
    size = min(SIDE / max(len(names), 1), 34.0)
    words = [n if len(n) <= 12 else f"{n[:11]}…" for n in names]
    margin = 24 + 5.9 * max((len(w) for w in words), default=0)
    side = size * len(names)
    drawn = [tag("rect", class_="field", x=margin, y=margin, width=side, height=side)]
    for (true, taken), n in sorted(counts.items()):
        share = n / totals[true]
        x, y = margin + size * taken, margin + size * true
        text = f"{names[true]} taken for {names[taken]}: {n}, {100 * share:.0f} %"
        kind = "right" if true == taken else "wrong"
        box = {"x": x, "y": y, "width": size, "height": size}
        # The root shows rare mistakes.
        drawn.append(
            tag("rect", tag("title", text), class_=kind, fill_opacity=f"{share**0.5:.2f}", **box)
        )
        if len(names) <= NUMBERED:
            inked = "count on" if share > 0.3 else "count"
            centre = {"x": x + size / 2, "y": y + size / 2 + 3.5}
            drawn.append(tag("text", str(n), class_=inked, text_anchor="middle", **centre))
    for i, word in enumerate(words):
        at, small = margin + size * (i + 0.5), "tiny" if size < 11 else None
        drawn.append(tag("text", word, x=margin - 5, y=at + 3.5, text_anchor="end", class_=small))
        turned = f"translate({at + 3.5:.1f} {margin - 5:.1f}) rotate(-90)"
        drawn.append(tag("text", word, transform=turned, class_=small))
    down = f"translate(10 {margin + side / 2:.1f}) rotate(-90)"
    drawn.append(tag("text", "true", class_="axis", transform=down, text_anchor="middle"))
    across = {"x": margin + side / 2, "y": 11.0, "text_anchor": "middle"}
    drawn.append(tag("text", "predicted", class_="axis", **across))
    whole = margin + side + 4
    return drawing(f"{entry.label}: confusion matrix", *drawn, width=whole, height=whole)
