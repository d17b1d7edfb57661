"""Build sdist and wheel, install the wheel where nothing else of lowtide is, and run it.

python scripts/package.py [FOLDER]

The two files are left in FOLDER (dist). Both are built in an environment of their own: hatchling
comes from the index. What lowtide depends on is taken from the environment that runs this, which
takes seconds; lowtide itself is the wheel's.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUN = (
    ["--version"],
    ["doctor"],
    ["methods"],
    ["plan", "--model", "vit_micro_patch4_32", "--num-classes", "3", "--method", "lora"],
    ["presets", "ssf/*/cifar"],
    ["completion", "bash"],
)
"""Commands that read what a wheel might have left out: weights, presets, kernels' source."""


def build(folder: Path, python: Path) -> tuple[Path, Path]:
    """Build an sdist, and a wheel from that."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", "build"], check=True)
    command = [python, "-m", "build", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def refuse_missing(sdist: Path, wheel: Path) -> None:
    """Compare both with the files that git tracks."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "lowtide"], capture_output=True, text=True, check=True
    )
    tracked = set(listed.stdout.split())
    packed = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    for what, held in (("wheel", packed), ("sdist", source)):
        if missing := sorted(tracked - held):
            raise SystemExit(f"the {what} lacks {len(missing)} files, first {missing[0]}")
    if strange := [n for n in packed if not n.startswith(("lowtide/", "lowtide-"))]:
        raise SystemExit(f"the wheel holds {strange[0]}")


def bare(folder: Path) -> Path:
    """Make an environment without packages; give its Python."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def install(wheel: Path, python: Path) -> None:
    """Install the wheel alone, and let the rest be found behind it."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(command, check=True)
    said = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    behind = Path(said.stdout.strip()) / "behind.pth"
    behind.write_text(sysconfig.get_path("purelib") + "\n")


def main() -> None:
    """Build, compare, install, run."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve()
    with tempfile.TemporaryDirectory() as temporary:
        python = bare(Path(temporary) / "venv")
        sdist, wheel = build(Path(temporary) / "dist", python)
        refuse_missing(sdist, wheel)
        install(wheel, python)
        where = [python, "-I", "-c", "import lowtide; print(lowtide.__file__)"]
        found = subprocess.run(where, cwd=temporary, capture_output=True, text=True, check=True)
        if not Path(found.stdout.strip()).is_relative_to(temporary):
            raise SystemExit(f"not the wheel was imported but {found.stdout.strip()}")
        for words in RUN:
            command = [python.with_name("lowtide"), *words]
            subprocess.run(command, cwd=temporary, check=True, stdout=subprocess.DEVNULL, env={})
        folder.mkdir(exist_ok=True)
        for path in (sdist, wheel):
            (folder / path.name).write_bytes(path.read_bytes())
            print(f"{folder / path.name}  {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
