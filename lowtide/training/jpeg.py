"""Small pictures inside JSON files: JPEGs in base64, checked before a page shows them."""

from __future__ import annotations

import base64
import io

from PIL import Image

from ..errors import InputError

START = b"\xff\xd8\xff"


def encode(image: Image.Image, largest: int) -> str | None:
    """Write a picture.

    Args:
        image: RGB.
        largest: Bytes it may take.

    Returns:
        A JPEG in base64; None where the picture does not compress to that.
    """
    for quality in (80, 40):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if file.tell() <= largest:
            return base64.b64encode(file.getvalue()).decode()
    return None


def refuse_other(text: str, what: str, largest: int) -> None:
    """Refuse what `encode` cannot have written.

    Args:
        text: What a file says is a picture.
        what: Its name, for the message.
        largest: Bytes it may take.

    Raises:
        InputError: It is no JPEG, or larger.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if not data.startswith(START) or len(data) > largest:
        raise InputError(f"{what} is no JPEG of {largest} bytes or less")
