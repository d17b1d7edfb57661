"""Small SVG drawings, as text; every attribute and word is escaped on its way in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 380, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40
COLOURS = 8
"""The page's palette; further methods take the same colours with another mark."""


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """Write an element.

    Args:
        name: Its name.
        *children: What stands in it; plain text is escaped.
        **attributes: By name, with `_` for `-`; a last `_` keeps clear of Python's own words.

    Returns:
        The element.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(c) for c in children)
    return Markup(f"<{name}{said}>{inner}</{name}>" if inner else f"<{name}{said}/>")


def _plain(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


@dataclass(frozen=True)
class Scale:
    """Where numbers lie along an axis.

    Attributes:
        low: Number at the start.
        high: Number at the end.
        start: Position of the start.
        end: Position of the end.
        log: Whether equal steps are equal factors.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: list[float], start: float, end: float, log: bool = False) -> Scale:
        """Make a scale on which numbers fit with a margin.

        Args:
            values: The numbers, positive for a log scale.
            start: Position of the start.
            end: Position of the end.
            log: Whether equal steps are equal factors.

        Returns:
            The scale.
        """
        if log:
            low, high = math.log10(min(values)), math.log10(max(values))
            pad = max((high - low) * 0.08, 0.1)
            return cls(10 ** (low - pad), 10 ** (high + pad), start, end, True)
        low, high = min(values), max(values)
        pad = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        return cls(low - pad, high + pad, start, end)

    def __call__(self, value: float) -> float:
        """Place a number.

        Args:
            value: The number.

        Returns:
            Its position.
        """
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Choose round numbers to mark.

        Returns:
            About five of them.
        """
        if self.log:
            for factors in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
                marks = self._powers(factors)
                if len(marks) >= 3:
                    return marks[:: -(-len(marks) // 7)]
        rough = (self.high - self.low) / 5
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]

    def _powers(self, factors: tuple[float, ...]) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found = [f * 10.0**p for p in powers for f in factors]
        return [v for v in found if self.low <= v <= self.high]


def short(value: float) -> str:
    """Write a number for an axis.

    Args:
        value: The number.

    Returns:
        Three digits, with k, M or G.
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def frame(x: Scale, y: Scale, across: str, up: str) -> Markup:
    """Draw two axes with their grid.

    Args:
        x: Along.
        y: Up.
        across: Name of `x`.
        up: Name of `y`.

    Returns:
        Lines and words.
    """
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(tag("path", class_="grid", d=f"M{x.start:.0f} {at:.1f}H{x.end:.0f}"))
        parts.append(tag("text", short(value), x=x.start - 6, y=at + 3.5, text_anchor="end"))
    for value in x.ticks():
        at = x(value)
        parts.append(tag("path", class_="grid", d=f"M{at:.1f} {y.start:.0f}V{y.end:.0f}"))
        parts.append(tag("text", short(value), x=at, y=y.start + 14, text_anchor="middle"))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", across, class_="axis", x=middle, y=y.start + 31, text_anchor="middle"))
    turned = f"translate(11 {(y.start + y.end) / 2:.1f}) rotate(-90)"
    parts.append(tag("text", up, class_="axis", transform=turned, text_anchor="middle"))
    return Markup("").join(parts)


def drawing(title: str, *children: Markup, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """Wrap what was drawn.

    Args:
        title: What it shows, for those who do not see it.
        *children: The drawing.
        width: Of its own units.
        height: Of its own units.

    Returns:
        The picture, as wide as its place allows.
    """
    return tag(
        "svg", *children, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", aria_label=title
    )


def mark(number: int, x: float, y: float, size: float = 4.5) -> Markup:
    """Draw the mark of a method.

    Args:
        number: Which method.
        x: Of its centre.
        y: Of its centre.
        size: Half its width.

    Returns:
        A disc, square, triangle or diamond in one of the palette's colours.
    """
    s = size
    shapes = (
        f"M{x - s:.1f} {y:.1f}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0z",
        f"M{x - s:.1f} {y - s:.1f}h{2 * s}v{2 * s}h{-2 * s}z",
        f"M{x:.1f} {y - 1.2 * s:.1f}l{1.2 * s:.1f} {2.1 * s:.1f}h{-2.4 * s:.1f}z",
        f"M{x:.1f} {y - 1.35 * s:.1f}l{1.35 * s:.1f} {1.35 * s:.1f}l{-1.35 * s:.1f}"
        f" {1.35 * s:.1f}l{-1.35 * s:.1f} {-1.35 * s:.1f}z",
    )
    shape = shapes[number // COLOURS % len(shapes)]
    return tag("path", class_=f"mark f{number % COLOURS}", d=shape)
