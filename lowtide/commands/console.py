"""Where commands print for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ..errors import printable


class Plain(Console):
    """Prints texts as they are: names hold what they like, and no terminal obeys them."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Take a text.

        Args:
            text: The text; names of files and classes may be anybody's.
            **options: As rich takes them.

        Returns:
            It, with control characters shown and no markup read.
        """
        return super().render_str(printable(text), **options)


OUT = Plain(highlight=False, soft_wrap=True, markup=False, emoji=False)
