"""Sentences of the report about its numbers, the same in every format."""

from __future__ import annotations

from .compare import LEVEL
from .tables import Board

SIGNIFICANCE = (
    "Test accuracy is that of the last epoch, mean ± standard deviation over seeds. The best of"
    " several is bold; ≈ marks what cannot be told from it"
    f" (p ≥ {LEVEL:g}, two-sided, not corrected for the number of methods): Welch's t-test over"
    " seeds where both have two or more, else a z-test of two proportions on the test images. With"
    " few seeds a mark says little: it is no proof that two methods are equal."
)
MEMORY = (
    "The planned peak is the memory of one training step as computed before the run, everything"
    " counted; the measured one is the run's own. Time per step is the median of a run's updates."
)
REPEAT = (
    "Every finished row, and the command that trains it again from the same commit. Relative paths"
    " in it start from the folder that it changes to, or of rows of earlier versions from the one"
    " in which they were run. A learning rate that was chosen was chosen on validation images,"
    " before any test. Names with $ in a path are environment variables."
)


def heading(board: Board) -> str:
    """Name a data set with its group.

    Args:
        board: What was run on it.

    Returns:
        Its heading.
    """
    return f"{board.data} ({board.group})" if board.group else board.data
