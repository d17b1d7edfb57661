"""What a request may be: images out of forms, limits, and folders that tasks may come from."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served import run_folder

from lowtide.data.preprocessing import Preprocessing
from lowtide.errors import InputError
from lowtide.serving.limits import Limits, Refused
from lowtide.serving.tasks import Tasks, named_runs, task_of
from lowtide.serving.upload import images_of, pixels_of

TRANSFORM = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", 1.0, "center").transform(
    train=False
)


def form(*parts: bytes, boundary: str = "xYz") -> tuple[str, bytes]:
    body = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="i"; filename="%d.png"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n%s\r\n" % (boundary.encode(), i, part)
        for i, part in enumerate(parts)
    )
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def png(width: int = 8, height: int = 8, value: int = 9) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (value,) * 3).save(out, "PNG")
    return out.getvalue()


def test_files_of_a_form_come_out_byte_for_byte() -> None:
    parts = [os.urandom(5000), b"\r\n\r\n\n\r" * 50, b"\r", bytes(range(256)) * 9, b"--xYz-not\r\n"]
    found = images_of(*form(*parts), Limits())
    assert [content for _, content in found] == parts
    assert [name for name, _ in found] == [f"{i}.png" for i in range(5)]
    assert images_of("image/png", b"abc", Limits()) == [("image", b"abc")]


@pytest.mark.parametrize(
    "kind, body, status",
    [
        ("", b"", 400),
        ("multipart/form-data", b"no boundary", 400),
        ("multipart/form-data; boundary=a", b"--b\r\n", 400),
        (*form(b"1", b"2", b"3"), 413),
    ],
)
def test_what_holds_no_images_or_too_many_is_refused(kind: str, body: bytes, status: int) -> None:
    with pytest.raises(Refused) as refused:
        images_of(kind, body, Limits(max_images=2))
    assert refused.value.status == status
    assert "\n" not in str(refused.value)


def test_an_image_comes_out_as_the_transform_has_it() -> None:
    assert np.array_equal(pixels_of("a", png(), TRANSFORM, Limits()), np.full((3, 16, 16), 9))


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"no image", "not an image"),
        (png()[:50], "truncated"),
        (png(64, 64), "64 x 64 pixels: expected at most 4000"),
    ],
    ids=["text", "cut", "large"],
)
def test_a_bad_image_is_one_line_that_names_it(content: bytes, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        pixels_of("evil\nname", content, TRANSFORM, Limits(max_pixels=4000))
    assert refused.value.status == 400
    assert reason in str(refused.value) and "\n" not in str(refused.value)
    assert "/tmp" not in str(refused.value)


def test_tasks_come_from_below_one_folder_only(tmp_path: Path) -> None:
    first, shelf = run_folder(tmp_path / "first"), tmp_path / "shelf"
    run_folder(shelf / "second", seed=1)
    run_folder(tmp_path / "outside", seed=1)
    run_folder(shelf / "other", backbone_seed=7)
    (shelf / "link").symlink_to(tmp_path / "outside")
    tasks = Tasks({"first": first}, shelf)
    for folder, status in {
        "../outside": 403,
        "link": 403,
        str(tmp_path / "outside"): 403,
        "a\0b": 400,
        7: 400,
        "missing": 400,
        "other": 400,
    }.items():
        with pytest.raises(Refused) as refused:
            tasks.found("second", folder)
        assert refused.value.status == status, folder
        assert str(folder) == str(tmp_path / "outside") or str(tmp_path) not in str(refused.value)
    for name in ("", "a/b", "..", "x" * 65, "a b"):
        with pytest.raises(Refused):
            tasks.found(name, "second")
    tasks.add(tasks.found("second", None))
    assert [t.name for t in tasks.all] == ["first", "second"]
    with pytest.raises(Refused, match="is served"):
        tasks.found("second", "second")
    tasks.remove("first")
    with pytest.raises(Refused, match="the last task"):
        tasks.remove("second")
    with pytest.raises(Refused, match="tasks are fixed"):
        Tasks({"first": first}, None).found("second", "second")


def test_runs_are_named_by_their_folders_or_as_said(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a")
    assert named_runs([str(a), f"b={a}"]) == {"a": a, "b": a}
    with pytest.raises(InputError, match="two runs are named a"):
        named_runs([str(a), f"a={a}"])
    with pytest.raises(InputError, match="name has letters"):
        task_of("a/b", a)
    other = run_folder(tmp_path / "b", backbone_seed=3)
    with pytest.raises(InputError, match="different weights"):
        Tasks({"a": a, "b": other}, None)
