"""The kernels' cache: whatever lies in it or is missing, a process gets whole kernels or none."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from lowtide.kernels import native
from lowtide.kernels.affine import (
    affine_pack,
    affine_pack_plain,
    affine_unpack,
    affine_unpack_plain,
)
from lowtide.kernels.threshold_codes import threshold_pack, threshold_pack_plain

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler")


STUB = """
extern "C" const char* instructions() { return "stub"; }
extern "C" void affine_pack_float32_float32() {}
"""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that has not looked for its kernels yet, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path.with_suffix(".cpp")
    source.write_text(STUB)
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    for cached in (native.kernels, native._library):
        cached.cache_clear()
    yield
    for cached in (native.kernels, native._library):
        cached.cache_clear()


def found() -> native.Kernels:
    native.kernels.cache_clear()
    return native.kernels()


def works(kernels: native.Kernels) -> None:
    assert kernels.library is not None and kernels.library.affine_pack_float32_float32
    assert kernels.instructions == "stub"


@pytest.fixture
def built(fresh: None) -> Path:
    """Where the kernels lie in a cache that holds nothing else."""
    kernels = found()
    works(kernels)
    assert kernels.file is not None
    return kernels.file


def builds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    seen: list[object] = []
    run = native._run
    monkeypatch.setattr(native, "_run", lambda command: (seen.append(command), run(command)))
    return seen


def other_library(folder: Path) -> bytes:
    source, library = folder / "other.cpp", folder / "other.so"
    source.write_text('extern "C" int other() { return 1; }')
    subprocess.run(["c++", "-shared", "-fPIC", source, "-o", library], check=True)
    return library.read_bytes()


@needs_compiler
def test_built_once(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = builds(monkeypatch)
    again = found()
    works(again)
    assert again.file == built and not seen
    assert [f.name for f in built.parent.iterdir()] == [built.name]


@needs_compiler
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "one bit", "foreign"])
def test_a_damaged_file_is_made_anew(built: Path, damage: str) -> None:
    whole = built.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    content = {
        "cut": whole[: len(whole) * 6 // 10],
        "empty": b"",
        "garbage": b"not a library",
        "one bit": bytes(flipped),
        "foreign": other_library(built.parent.parent),
    }[damage]
    # A new file, as after a power cut: the old one is mapped by this process.
    built.unlink()
    built.write_bytes(content)
    again = found()
    works(again)
    assert again.file is not None and again.file.read_bytes() == whole


@needs_compiler
def test_a_whole_file_that_does_not_load_is_passed_over(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ctypes.CDLL

    def refuse(file: str) -> ctypes.CDLL:
        if file == str(built):
            raise OSError("failed to map segment")
        return load(file)

    monkeypatch.setattr(native.ctypes, "CDLL", refuse)
    works(found())


@pytest.mark.parametrize(
    ("cxx", "said"),
    [
        ("/nope/cc", "there is no /nope/cc, which CXX names"),
        ("g++ 'x", "No closing quotation"),
        ("false", "false failed: exit status 1"),
        (f"{sys.executable} -c 'raise SystemExit(\"error: not today\")'", "error: not today"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing(
    cxx: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", cxx)
    kernels = found()
    assert kernels.library is None and said in kernels.reason and not kernels.instructions
    assert not list(tmp_path.rglob("*"))


def test_no_compiler_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "no C++ compiler" in found().reason


def test_the_absence_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nope/cc")
    given = (torch.randn(3, 64), None, None, 4, 64, torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="without its CPU kernels.*/nope/cc") as said:
        packed = affine_pack(*given)
        again = affine_pack(*given)
    assert len(said) == 1
    for a, b, c in zip(packed, again, affine_pack_plain(*given), strict=True):
        assert torch.equal(a, c) and torch.equal(b, c)


@needs_compiler
def test_words_in_cxx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "c++ -pipe")
    works(found())


@needs_compiler
def test_a_compiler_without_our_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows neither OpenMP nor this machine still makes kernels, of one thread."""
    plain = tmp_path / "cc"
    plain.write_text('#!/bin/sh\ncase "$*" in *fopenmp*|*march*) exit 1;; esac\nexec c++ "$@"\n')
    plain.chmod(0o755)
    monkeypatch.setenv("CXX", str(plain))
    works(found())


@needs_compiler
@pytest.mark.parametrize("place", ["a file", "in a file", "no home"])
def test_a_cache_that_cannot_be(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    if place == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(native.Path, "home", homeless)
    else:
        folder = "file" if place == "a file" else "file/deeper"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
    kernels = found()
    works(kernels)
    assert kernels.file is None
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("without", "instructions"),
    [("-mno-avx512f", "AVX2"), ("-mno-avx512f -mno-avx2 -mno-avx", "portable")],
)
def test_processors_with_less_pack_the_same(
    without: str, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = Path("/proc/cpuinfo")
    if not (cpu.exists() and " avx2 " in cpu.read_text()):
        pytest.skip("this processor has no AVX2 to take away")
    monkeypatch.setattr(native, "SOURCE", Path(native.__file__).with_name("packing.cpp"))
    monkeypatch.setenv("CXX", f"c++ {without}")
    assert found().instructions == instructions
    for dtype, shape in product((torch.float32, torch.bfloat16), ((3, 10, 64), (5, 4001))):
        x = torch.randn(shape).to(dtype)
        for bits in range(1, 9):
            packed = affine_pack(x, None, None, bits, 64, torch.bfloat16)
            plain = affine_pack_plain(x, None, None, bits, 64, torch.bfloat16)
            assert all(map(torch.equal, packed, plain))
            back = (*packed, list(shape), bits, 64, dtype)
            assert torch.equal(affine_unpack(*back), affine_unpack_plain(*back))
        for count in (1, 3, 7, 15):
            edges = [i / 4 - 1 for i in range(count)]
            given = (x, edges, [3 * i % 16 for i in range(count + 1)], 4)
            assert torch.equal(threshold_pack(*given), threshold_pack_plain(*given))
