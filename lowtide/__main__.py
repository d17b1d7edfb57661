"""`python -m lowtide`, and what `accelerate launch -m lowtide` starts."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
