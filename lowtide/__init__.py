"""Fine-tune large pre-trained vision backbones in very little memory.

What trains is a method (`lowtide.methods`); what is kept for the backward pass is a policy
(`lowtide.compress`). Any of one works with any of the other, on any backbone.

    model = timm.create_model("vit_base_patch16_224", pretrained=True)
    tuned = lowtide.apply(model, lowtide.METHODS["lora"](rank=8), num_classes=10)
    lowtide.compress(tuned, "tight")

or, from a folder of images to a model that answers,

    run = lowtide.fit("vit_base_patch16_224", "photos", "lora", epochs=5)
    run.predict("new")
"""

from __future__ import annotations

from . import interrupt as interrupt  # first of all: the rest takes seconds
from . import zoo as zoo  # registers the bundled backbone with timm
from .core.graft import Graft as Graft
from .core.method import Beside as Beside
from .core.method import Method as Method
from .core.method import Swap as Swap
from .core.method import Thaw as Thaw
from .core.method import method as method
from .core.outside import import_offered as _import_offered
from .core.side import Side as Side
from .core.site import Role as Role
from .core.site import Site as Site
from .core.site import Sites as Sites
from .errors import InputError as InputError
from .errors import LowtideError as LowtideError
from .errors import UnknownName as UnknownName
from .errors import Unsupported as Unsupported
from .inference.fit import FitResult as FitResult
from .inference.fit import fit as fit
from .inference.hub import from_hub as from_hub
from .memory.compress import compress as compress
from .memory.compress import decompress as decompress
from .memory.policies import POLICIES as POLICIES
from .memory.policy import Policy as Policy
from .methods import METHODS as METHODS
from .multi_adapter.model import MultiAdapter as MultiAdapter
from .planning.meter import Footprint as Footprint
from .planning.meter import Meter as Meter
from .planning.meter import footprint as footprint
from .planning.simulate import Plan as Plan
from .planning.simulate import plan as plan
from .planning.step import StepConfig as StepConfig
from .report.card import push_to_hub as push_to_hub
from .training.callbacks import Callback as Callback
from .tuning.applying import apply as apply
from .tuning.backbone import create as create
from .tuning.peft import load as load
from .tuning.peft import merge_peft as merge_peft
from .tuning.peft import write_peft as write_peft
from .tuning.tuned import Tuned as Tuned
from .tuning.tuned import merge as merge
from .tuning.tuned import set_frozen_dtype as set_frozen_dtype

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "POLICIES",
    "Beside",
    "Callback",
    "FitResult",
    "Footprint",
    "Graft",
    "InputError",
    "LowtideError",
    "Meter",
    "Method",
    "MultiAdapter",
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
    "fit",
    "footprint",
    "from_hub",
    "load",
    "merge",
    "merge_peft",
    "method",
    "plan",
    "push_to_hub",
    "set_frozen_dtype",
    "write_peft",
]

_import_offered()  # last of all: their files import lowtide
