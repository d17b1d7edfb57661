"""`lowtide` without dropout, whose draws depend on how many processes share a batch."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from lowtide.cli import main


def forward(self: nn.Module, x: Tensor, *more: Any) -> Tensor:
    return x


if __name__ == "__main__":
    nn.Dropout2d.forward = nn.Dropout.forward = forward  # type: ignore[method-assign]
    raise SystemExit(main(sys.argv[1:]))
