"""Real images: read and check a source, pre-process as the weights want, load in batches.

Imports errors, paths, extras, values, core, targets.
"""

from __future__ import annotations

from .batches import Cache as Cache
from .batches import loader as loader
from .batches import share as share
from .check import Findings as Findings
from .check import check as check
from .dataset import Dataset as Dataset
from .dataset import Sample as Sample
from .distortion import Distortion as Distortion
from .distortion import refuse_policy as refuse_policy
from .images import UnreadableImage as UnreadableImage
from .images import decode as decode
from .pixels import Pixels as Pixels
from .preprocessing import AUGMENTS as AUGMENTS
from .preprocessing import Augment as Augment
from .preprocessing import Preprocessing as Preprocessing
from .preprocessing import Transform as Transform
from .reading import read as read
