"""`lowtide import`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..inference.places import refuse_replacing
from ..paths import located
from ..training.parser import Parser
from ..tuning.adapter_files import write_tensors
from ..tuning.backbone import create
from ..tuning.peft import merge_peft
from ..values import Side
from .console import OUT

SUMMARY = "Fold an adapter of peft's into a timm backbone, for --checkpoint."


def import_(args: Sequence[str]) -> None:
    """Run `lowtide import`.

    Args:
        args: The command's arguments.

    Raises:
        InputError: The output is no safetensors file.
    """
    parser = Parser("import", SUMMARY)
    parser.add_argument("adapter", type=str, help="Folder of a LoRA, DoRA, VeRA or IA3 of peft's.")
    parser.add_argument("--model", type=str, required=True, help="timm's name of the backbone.")
    parser.add_argument(
        "--checkpoint", type=str, help="The backbone's weights, instead of timm's own."
    )
    parser.add_argument("--image-size", type=Side, help="Side of the square input.")
    parser.add_argument("--output", type=str, required=True, help="Safetensors file to write.")
    given = parser.read(args)
    output = Path(given["output"])
    if output.suffix != ".safetensors":
        raise InputError(f"{output} must end in .safetensors")
    checkpoint = Path(given["checkpoint"]) if given["checkpoint"] else None
    refuse_replacing(output, checkpoint)
    model = create(
        given["model"],
        checkpoint=checkpoint,
        image_size=given["image_size"],
    )
    state = merge_peft(model, located(given["adapter"])).state_dict()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(output, state)
    OUT.print(f"wrote {output}; go on with it by --model {given['model']} --checkpoint {output}")
