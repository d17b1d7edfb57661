"""Look inside a run: weights before and after, features of two models, where attention looks.

Every view is a function that gives numbers, and one that draws them on a matplotlib figure.

Imports errors, paths, extras, core, methods, tuning, data, inference.
"""

from __future__ import annotations

from .attention import attention_maps as attention_maps
from .cka import cka as cka
from .cka import draw_cka as draw_cka
from .cka import similarity as similarity
from .distributions import draw_parameters as draw_parameters
from .drawing import save as save
from .drawing import svg as svg
from .features import block_features as block_features
from .features import final_features as final_features
from .features import untouched as untouched
from .overlay import draw_attention as draw_attention
from .overlay import read_images as read_images
from .parameters import run_changes as run_changes
from .tsne import draw_tsne as draw_tsne
from .tsne import tsne as tsne
