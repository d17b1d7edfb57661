"""Small codes side by side in bytes; the kernels have the same layout."""

from __future__ import annotations

from ..kernels.bits import join as join
from ..kernels.bits import pack_bits as pack_bits
from ..kernels.bits import packed_bytes as packed_bytes
from ..kernels.bits import split as split
from ..kernels.bits import unpack_bits as unpack_bits
