"""The code that runs in a worker process of LitServe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from litserve import LitAPI

from .predictor import Predictor

PATH = "/internal"
"""LitServe's address of it, which is not served: requests come by `app`, checked."""


class AdapterWorker(LitAPI):
    """A `Predictor` as LitServe calls it; requests and answers are left as they are."""

    def __init__(
        self, runs: Mapping[str, Path], checkpoint: Path | None, top: int, **batching: Any
    ) -> None:
        """Say what is to be loaded.

        Args:
            runs: Folders by name.
            checkpoint: Where the backbone's weights are now, if not where they were.
            top: Classes of an answer.
            **batching: LitServe's options.
        """
        super().__init__(api_path=PATH, **batching)
        self.runs, self.checkpoint, self.top = dict(runs), checkpoint, top

    def setup(self, device: str) -> None:
        """Load the backbone once, and the adapters."""
        self.predictor = Predictor(self.runs, self.checkpoint, self.top, device)

    def decode_request(self, request: Any, **kwargs: Any) -> Any:
        """Return what `app` asks unchanged."""
        return request

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave requests apart."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Leave answers apart."""
        return output

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        """Give an answer to `app` as it is."""
        return output

    def predict(self, x: list[Mapping[str, Any]], **kwargs: Any) -> list[dict[str, Any]]:
        """Answer a batch: classes, or an error, of each."""
        return self.predictor.predict(x)
