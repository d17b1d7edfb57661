"""Search spaces: how a candidate is drawn, mutated, crossed and made a method."""

from __future__ import annotations

import abc
import json
import random
from collections.abc import Mapping
from typing import Any

from ..core.method import Method

Genes = Mapping[str, Any]
"""What is chosen for a candidate, as plain data."""


class Space(abc.ABC):
    """The candidates of a search."""

    @abc.abstractmethod
    def draw(self, rng: random.Random) -> Genes:
        """Draw a candidate, every choice uniformly.

        Args:
            rng: Draws.

        Returns:
            The candidate.
        """

    @abc.abstractmethod
    def mutate(self, genes: Genes, rng: random.Random) -> Genes:
        """Change some of a candidate's choices.

        Args:
            genes: The candidate.
            rng: Draws.

        Returns:
            Another one, or the same.
        """

    @abc.abstractmethod
    def cross(self, one: Genes, other: Genes, rng: random.Random) -> Genes:
        """Combine the choices of two candidates.

        Args:
            one: The first.
            other: The second.
            rng: Draws.

        Returns:
            Their child.
        """

    @abc.abstractmethod
    def method(self, genes: Genes) -> Method:
        """Make a candidate's method.

        Args:
            genes: The candidate.

        Returns:
            What trains.
        """


def name_of(genes: Genes) -> str:
    """Give a candidate's name, the same for the same choices.

    Args:
        genes: The candidate.

    Returns:
        A line of JSON.
    """
    return json.dumps(genes, sort_keys=True)
