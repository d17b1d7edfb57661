"""Names of scores, as people read them."""

from __future__ import annotations

WORDS = {
    "mean_class_accuracy": "mean over classes",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "auroc": "AUROC",
    "ece": "ECE",
    "map": "mAP",
    "box_map": "mAP of boxes",
    "mask_map": "mAP of masks",
    "miou": "mIoU",
    "iou": "IoU",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
}


def word(score: str) -> str:
    """Give the name of a score, as people read it.

    Args:
        score: Its name in files.

    Returns:
        Its name for people, the same where it has no other.
    """
    return WORDS.get(score, score.replace("_", " "))
