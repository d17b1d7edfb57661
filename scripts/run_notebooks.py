"""Run the notebooks of docs/ in a folder of their own, and keep what they print.

python scripts/run_notebooks.py [NAME ...]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).resolve().parents[1] / "docs"


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a folder; the first that fails ends it."""
    quiet = {"PYTHONWARNINGS": "ignore:IProgress not found"}
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=900, resources=resources, record_timing=False)
    client.execute(env=os.environ | quiet)
    return notebook


def main() -> None:
    """Run those that are named, or all."""
    for path in [DOCS / name for name in sys.argv[1:]] or sorted(DOCS.glob("*.ipynb")):
        folder = Path(tempfile.gettempdir()) / path.stem  # a name that may stand in the outputs
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        nbformat.write(execute(path, folder), path)
        shutil.rmtree(folder)
        print(path)


if __name__ == "__main__":
    main()
