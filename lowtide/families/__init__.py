"""Backbone families as tables; the only place where a family is named.

Every file in this folder that defines `FAMILY` is found by walking it.

Imports errors, versions, zoo, core, memory.
"""

from __future__ import annotations

import importlib
import pkgutil

from torch import nn

from .. import zoo
from ..memory.chunking import declare
from .classifier import HeadInit as HeadInit
from .classifier import classifiers as classifiers
from .classifier import config_of as config_of
from .classifier import exchange_config as exchange_config
from .classifier import logit_maps as logit_maps
from .classifier import new_classifier as new_classifier
from .classifier import outputs as outputs
from .classifier import reset as reset
from .generic import GENERIC as GENERIC
from .meta_model import meta_copy as meta_copy
from .parts import recomputable as recomputable
from .table import SEPARATE as SEPARATE
from .table import Context as Context
from .table import Family as Family
from .table import image_shape as image_shape
from .table import measure as measure
from .table import prepare as prepare

_FILES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
FAMILIES: dict[str, Family] = {m.FAMILY.name: m.FAMILY for m in _FILES if hasattr(m, "FAMILY")}
"""Every family with a table, by name."""
KNOWN = ("timm.", f"{zoo.__name__}.")
"""Where the classes that tables describe are defined."""

for _family in FAMILIES.values():
    declare(KNOWN, _family.classes)


def family_of(model: nn.Module) -> Family:
    """Find the table that describes a backbone.

    Args:
        model: The backbone.

    Returns:
        Its family; the generic one where no table names its class.
    """
    kind = type(model)
    if kind.__module__.startswith(KNOWN):  # torchvision's classes have the same names
        for family in FAMILIES.values():
            if kind.__name__ in family.classes:
                return family
    return GENERIC
