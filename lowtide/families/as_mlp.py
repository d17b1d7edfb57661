"""AS-MLP: MLPs that see their neighbours through shifted channels.

Channels first, every map a 1x1 convolution. `fc1` and `fc2` are the channel MLP's; the projections
around the shifts are `linear`: space is mixed by the shift, which has no parameters, and not by
them. The two norms between them are `other`, as norms inside attention are: SSF's authors put
nothing after them, which is how they come to 0.37 million parameters on AS-MLP-B.
"""

from __future__ import annotations

from ..core.site import Layout, Role
from ..zoo.as_mlp import AsMlp
from .table import Family, staged

_BLOCK = r"stages\.\d+\.blocks\.\d+"


FAMILY = Family(
    name="as_mlp",
    classes=("AsMlp",),
    roles=(
        (r"patch_embed\.proj", Role.STEM),
        (_BLOCK, Role.BLOCK),
        (rf"{_BLOCK}\.norm[12]|norm|patch_embed\.norm|stages\.\d+\.downsample\.norm", Role.NORM),
        (rf"{_BLOCK}\.shift\.proj_(in|w|h|out)", Role.LINEAR),
        (rf"{_BLOCK}\.mlp", Role.MLP),
        (rf"{_BLOCK}\.mlp\.fc1", Role.FC1),
        (rf"{_BLOCK}\.mlp\.act", Role.ACT),
        (rf"{_BLOCK}\.mlp\.fc2", Role.FC2),
        (r"stages\.\d+\.downsample\.reduction", Role.DOWN),
    ),
    layout=Layout.FIRST,
    stem=lambda model, x: model.patch_embed(x),
    chain=staged("stages"),
    finish=lambda model, x: model.norm(x),
    tiny=lambda: AsMlp(embed_dim=24, depths=(2, 2), shift_size=3, num_classes=10),
    last="norm",
)
