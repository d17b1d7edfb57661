"""Fine-tune large pre-trained vision backbones in very little memory.

What trains is a method (`lowtide.methods`); what is kept for the backward pass is a policy
(`lowtide.compress`). Any of one works with any of the other, on any backbone.

    model = timm.create_model("vit_base_patch16_224", pretrained=True)
    tuned = lowtide.apply(model, lowtide.METHODS["lora"](rank=8), num_classes=10)
    lowtide.compress(tuned, lowtide.Policy.tight())
"""

from __future__ import annotations

from . import interrupt as interrupt  # first of all: the rest takes seconds
from . import zoo as zoo  # registers the bundled backbone with timm
from .backbone import create as create
from .compress import compress as compress
from .compress import decompress as decompress
from .errors import InputError as InputError
from .errors import LowtideError as LowtideError
from .errors import UnknownName as UnknownName
from .errors import Unsupported as Unsupported
from .graft import Beside as Beside
from .graft import Graft as Graft
from .graft import Method as Method
from .graft import Side as Side
from .graft import Swap as Swap
from .graft import Thaw as Thaw
from .graft import method as method
from .memory import Footprint as Footprint
from .memory import Meter as Meter
from .memory import footprint as footprint
from .methods import METHODS as METHODS
from .plan import Plan as Plan
from .plan import plan as plan
from .policy import POLICIES as POLICIES
from .policy import Policy as Policy
from .site import Role as Role
from .site import Site as Site
from .site import Sites as Sites
from .step import StepConfig as StepConfig
from .tune import Tuned as Tuned
from .tune import apply as apply
from .tune import load as load
from .tune import merge as merge
from .tune import narrow as narrow

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "POLICIES",
    "Beside",
    "Footprint",
    "Graft",
    "InputError",
    "LowtideError",
    "Meter",
    "Method",
    "Plan",
    "Policy",
    "Role",
    "Side",
    "Site",
    "Sites",
    "StepConfig",
    "Swap",
    "Thaw",
    "Tuned",
    "UnknownName",
    "Unsupported",
    "apply",
    "compress",
    "create",
    "decompress",
    "footprint",
    "load",
    "merge",
    "method",
    "narrow",
    "plan",
]
