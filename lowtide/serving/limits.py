"""Limits of a request, and how one beyond them is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from ..errors import LowtideError
from ..values import Count, Within

MEGA = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of how many may wait.

    Attributes:
        max_bytes: Bytes of a request.
        max_pixels: Pixels of an image.
        max_images: Images of a request.
        max_waiting: Images that wait or are being answered; more are refused with 503.
    """

    max_bytes: Annotated[int, Within(1, 4_000 * MEGA)] = 32 * MEGA
    max_pixels: Annotated[int, Within(1, 178 * MEGA)] = 64 * MEGA
    max_images: Count = 64
    max_waiting: Count = 256


NAMES = tuple(field.name for field in fields(Limits))


class Refused(LowtideError):
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
