"""NF4's codes as numbers again on a GPU, in Triton: one kernel, and no table of scales between."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .normal_float import LEVELS, TREE, normal_float_unpack, normal_float_unpack_plain
from .triton import DTYPES, EXACT, NUMBERS, _load_codes, _rounded, _table


@triton.jit(do_not_specialize=["block", "second", "n"])
def _normal_float_unpack(
    mean, most, scales, packed, levels, tree, out, block, second, n, SIZE: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    here = at < n
    level = tl.load(levels + _load_codes(packed, at, n, 4), mask=here, other=0.0)
    share = tl.load(tree + tl.load(scales + at // block, mask=here, other=0).to(tl.int32))
    scale = share * tl.load(most + at // block // second, mask=here, other=0.0) + tl.load(mean)
    tl.store(out + at, _rounded(level * scale, out.dtype.element_ty), mask=here)


def normal_float_unpack_triton(
    mean: Tensor,
    most: Tensor,
    scales: Tensor,
    codes: Tensor,
    shape: list[int],
    block: int,
    second: int,
    dtype: torch.dtype,
) -> Tensor:
    """Run `normal_float_unpack` on a GPU."""
    if dtype not in DTYPES:
        given = (mean, most, scales, codes, shape, block, second, dtype)
        return normal_float_unpack_plain(*given)
    x = codes.new_empty(shape, dtype=dtype)
    if n := x.numel():
        tables = (_table(values, torch.float32, codes.device) for values in (LEVELS, TREE))
        tensors = (mean, most, scales, codes, *tables, x)
        grid = (triton.cdiv(n, NUMBERS),)
        _normal_float_unpack[grid](*tensors, block, second, n, SIZE=NUMBERS, **EXACT)
    return x


normal_float_unpack.register_kernel("cuda")(normal_float_unpack_triton)
