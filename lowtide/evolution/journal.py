"""The results of a search, a line of JSON each, from which it resumes after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .space import Genes, name_of


class Journal:
    """Facts of candidates: costs and scores. A line that a kill cut short is left out."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Args:
            path: The file.
        """
        self._path = path
        self._known: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
        for line in whole.splitlines():
            facts = json.loads(line)
            self._known.setdefault(name_of(facts.pop("genes")), {}).update(facts)

    def get(self, genes: Genes) -> dict[str, Any]:
        """Look up what is known.

        Args:
            genes: The candidate.

        Returns:
            Facts by name; none of a candidate not met.
        """
        return self._known.get(name_of(genes), {})

    def note(self, genes: Genes, **facts: Any) -> None:
        """Write down what was found out.

        Args:
            genes: The candidate.
            **facts: What is known of it now; plain data.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"genes": genes, **facts}) + "\n")
        self._known.setdefault(name_of(genes), {}).update(facts)
