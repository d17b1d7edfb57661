"""Real images: read and check a source, pre-process as the checkpoint wants, load in batches."""

from __future__ import annotations

from lowtide.data.batches import Cache as Cache
from lowtide.data.batches import loader as loader
from lowtide.data.dataset import Dataset as Dataset
from lowtide.data.dataset import Sample as Sample
from lowtide.data.images import UnreadableImage as UnreadableImage
from lowtide.data.images import decode as decode
from lowtide.data.preprocessing import AUGMENTS as AUGMENTS
from lowtide.data.preprocessing import Augment as Augment
from lowtide.data.preprocessing import Preprocessing as Preprocessing
from lowtide.data.preprocessing import Transform as Transform
from lowtide.data.reading import read as read
