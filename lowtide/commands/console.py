"""Consoles for messages to people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ..errors import printable


class Plain(Console):
    """A console that prints text literally: no markup, no control characters."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a text, with control characters shown and no markup read."""
        return super().render_str(printable(text), **options)


OUT = Plain(highlight=False, soft_wrap=True, markup=False, emoji=False)
