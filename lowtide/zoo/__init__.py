"""Backbones that come with lowtide. Importing this registers them with timm.

Imports nothing of lowtide.
"""

from __future__ import annotations

from .as_mlp import as_mlp_base, as_mlp_small, as_mlp_tiny
from .vit_micro import vit_micro_patch4_32

__all__ = ["as_mlp_base", "as_mlp_small", "as_mlp_tiny", "vit_micro_patch4_32"]
