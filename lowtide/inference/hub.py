"""Runs from the Hugging Face hub.

What is downloaded is read as any file of a stranger's: two files by name, JSON and safetensors.
"""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from ..errors import LowtideError
from ..tuning.adapter_files import CONFIG, WEIGHTS
from .evaluate import Trained, open_run

CARD = "README.md"
PREFIX = "hf:"
"""What stands before the name of a repository where a run folder is asked for."""
FILES = (CONFIG, WEIGHTS, CARD)
REFUSED = (HfHubHTTPError, ValueError, OSError)
"""What the hub's client raises where the hub refuses or is out of reach."""


def download(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """Download what `push_to_hub` uploaded, or find it downloaded.

    Args:
        repo_id: `USER/NAME`.
        revision: A branch, tag or commit.
        token: For a private repository; by default the one that `hf auth login` keeps.

    Returns:
        A folder that commands take as a run.

    Raises:
        LowtideError: It cannot be had.
    """
    try:
        return Path(
            hub(token).snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES))
        )
    except REFUSED as e:
        raise LowtideError(f"cannot download {repo_id}: {reason(e)}") from e


def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
) -> Trained:
    """Load a run from the hub on the backbone that it names.

    Args:
        repo_id: `USER/NAME`.
        revision: A branch, tag or commit.
        token: For a private repository.
        checkpoint: The backbone's weights, where the run did not take timm's own.
        device: As `--device` takes it.

    Returns:
        The model, its classes and its pre-processing.
    """
    folder = download(repo_id, revision=revision, token=token)
    return open_run(folder, checkpoint=checkpoint, device=device)


def hub(token: str | None) -> HfApi:
    """Make the hub's client.

    Args:
        token: By default the one that `hf auth login` keeps.

    Returns:
        The client, of `HF_ENDPOINT` where that is set.
    """
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="lowtide")


def reason(error: Exception) -> str:
    """Give the hub's refusal in one line.

    Args:
        error: What its client raised.

    Returns:
        The first line.
    """
    return next((s.strip() for s in str(error).splitlines() if s.strip()), type(error).__name__)
