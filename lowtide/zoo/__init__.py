"""Backbones that come with lowtide. Importing this registers them with timm."""

from __future__ import annotations

from .vit_micro import vit_micro_patch4_32

__all__ = ["vit_micro_patch4_32"]
