"""Backbone families as tables; the only place where a family is named.

Every file in this folder that defines `FAMILY` is found by walking it.

Imports errors, versions, zoo, core, memory.
"""

from __future__ import annotations

import copyreg
import importlib
import pkgutil
import sys

from torch import nn

from .. import zoo
from ..core.site import Role
from ..memory.attention import declare_attention
from ..memory.chunking import declare, declare_mlps
from .classifier import HeadInit as HeadInit
from .classifier import classifiers as classifiers
from .classifier import config_of as config_of
from .classifier import exchange_config as exchange_config
from .classifier import logit_maps as logit_maps
from .classifier import new_classifier as new_classifier
from .classifier import outputs as outputs
from .classifier import reset as reset
from .constants import declare_constants
from .constants import share_constants as share_constants
from .extractors import backbone_path as backbone_path
from .extractors import core as core
from .extractors import holders as holders
from .extractors import original, rebuilt
from .extractors import part_at as part_at
from .generic import GENERIC as GENERIC
from .measuring import SEPARATE as SEPARATE
from .measuring import measure as measure
from .measuring import measure_part as measure_part
from .meta_model import meta_copy as meta_copy
from .parts import recomputable as recomputable
from .table import Context as Context
from .table import Family as Family
from .table import image_shape as image_shape
from .table import prepare as prepare

_FILES = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
FAMILIES: dict[str, Family] = {m.FAMILY.name: m.FAMILY for m in _FILES if hasattr(m, "FAMILY")}
"""Every family with a table, by name."""
KNOWN = ("timm.", f"{zoo.__name__}.")
"""Where the classes that tables describe are defined."""
SHARED = ("timm.models._",)
"""timm's files of parts that many backbones share."""

for _family in FAMILIES.values():
    declare(KNOWN, _family.classes)
    declare_attention(_family.attentions)
    declare_mlps(_family.mlps)
    declare_constants(_family.constants)


def family_named(name: str) -> Family:
    """Find a family by its name: a table is pickled as that, since functions are not.

    Args:
        name: Its name.

    Returns:
        Its table.
    """
    return GENERIC if name == GENERIC.name else FAMILIES[name]


for _kind in {type(_family) for _family in (*FAMILIES.values(), GENERIC)}:
    copyreg.pickle(_kind, lambda family: (family_named, (family.name,)))


def family_of(model: nn.Module) -> Family:
    """Find the table that describes a backbone.

    A backbone that timm took apart has lost its class. The files that define its parts tell it, if
    they are one that defines a class with a table and that table finds blocks.

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
    return _taken_apart(model) if rebuilt(model) else GENERIC


def _taken_apart(model: nn.Module) -> Family:
    kinds = {type(m).__module__ for m in model.modules()}
    files = {k for k in kinds if k.startswith("timm.models.") and not k.startswith(SHARED)}
    for family in FAMILIES.values() if len(files) == 1 else ():
        defined = (getattr(sys.modules[min(files)], name, None) for name in family.classes)
        own = any(kind is not None and kind.__module__ in files for kind in defined)
        if own and any(
            family.role(original(path), m) is Role.BLOCK for path, m in model.named_modules()
        ):
            return family
    return GENERIC
