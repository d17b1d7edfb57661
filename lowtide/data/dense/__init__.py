"""Images with boxes, instance masks or semantic masks: read, checked, augmented."""

from __future__ import annotations

from .check import DenseFindings as DenseFindings
from .check import check as check
from .folder import DenseFolder as DenseFolder
from .folder import DenseSplit as DenseSplit
from .formats import recognised as recognised
from .listing import Kind as Kind
from .reading import read as read
from .transforms import RECIPES as RECIPES
from .transforms import Recipe as Recipe
from .transforms import transforms as transforms
