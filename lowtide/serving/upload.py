"""Decode the images in a request, which may come from anybody."""

from __future__ import annotations

import io
import tempfile
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..data import UnreadableImage
from ..data.images import formats
from ..data.preprocessing import Preprocessing, Transform
from ..errors import printable, shown
from .limits import Limits, Refused

Pixels = NDArray[np.uint8]


def images_of(content_type: str, body: bytes, limits: Limits) -> list[tuple[str, bytes]]:
    """Find the images of a request.

    Args:
        content_type: `multipart/form-data` with files, or anything else for one image.
        body: The request's body.
        limits: How many there may be.

    Returns:
        Name and bytes of each, in order.

    Raises:
        Refused: There is none, or there are too many.
    """
    if not content_type.lower().startswith("multipart/form-data"):
        found = [("image", body)] if body else []
    else:
        head = b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n"
        message = BytesParser(policy=HTTP).parsebytes(head + body)
        found = []
        for part in message.iter_parts() if message.is_multipart() else ():
            payload = part.get_payload(decode=True)
            if part.get_filename() is not None and isinstance(payload, bytes):
                found.append((str(part.get_filename()), payload))
    if not found:
        raise Refused(400, "the request holds no image: send one as the body, or files as a form")
    if len(found) > limits.max_images:
        raise Refused(413, f"{len(found)} images, and a request may hold {limits.max_images}")
    return found


def pixels_of(name: str, content: bytes, transform: Transform, limits: Limits) -> Pixels:
    """Decode an image and bring it to the model's size.

    Args:
        name: Its name, for the message.
        content: Its bytes.
        transform: The task's evaluation transform.
        limits: How large it may be.

    Returns:
        `(C, H, W)`, before normalisation.

    Raises:
        Refused: It is no image, damaged, or too large.
    """
    made: Preprocessing = transform.preprocessing
    with tempfile.NamedTemporaryFile(prefix="lowtide-") as file:
        try:
            with Image.open(io.BytesIO(content), formats=formats()) as image:
                _refuse_large(name, image.width, image.height, limits)
            file.write(content)
            file.flush()
            decoded = made.decode(Path(file.name))
        except UnreadableImage as e:
            reason = str(e).rpartition(f"{file.name}: ")[2]
            raise Refused(400, f"cannot read image {_named(name)}: {reason}") from e
        except Refused:
            raise
        except Exception as e:  # decoders of broken bytes raise anything
            raise Refused(400, f"cannot read image {_named(name)}: not an image") from e
    return np.asarray(transform.before_cache(decoded), np.uint8)


def _refuse_large(name: str, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise Refused(
            400,
            f"image {_named(name)} has {width} x {height} pixels: expected at most"
            f" {limits.max_pixels}",
        )


def _named(name: str) -> str:
    return printable(shown(name))
