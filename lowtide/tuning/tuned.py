"""The verbs: apply methods to a backbone, switch adapters, save and load them, merge them away."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..core.graft import Beside, Method, find, method_name
from ..core.site import Role, Sites
from ..core.wrapped import plain, unwrapped
from ..errors import InputError, UnknownName, Unsupported
from ..families import (
    HeadInit,
    core,
    family_of,
    holders,
    image_shape,
    measure,
    measure_part,
    new_classifier,
    outputs,
    part_at,
    prepare,
    reset,
)
from ..memory.chunking import declare
from ..memory.compress import decompress
from ..memory.frozen_dtype import (
    FrozenDtype,
    frozen_dtype_of,
    hidden_numbers,
    pack_frozen,
    packable,
    unpack_frozen,
)
from .adapter import Adapter, build
from .adapter_config import WHOLE, AdapterConfig, Head
from .adapter_files import describe, read_adapter, write_adapter
from .checks import (
    blame_methods,
    outputs_on_noise,
    refuse_changed_outputs,
    refuse_unreached,
    restored_on_error,
)
from .exchange import exchange_hooks, set_module
from .fingerprint import (
    ORIGINAL,
    architecture,
    fingerprint,
    refuse_other_base,
    refuse_other_part,
)
from .left_out import LeftOutWarning, left_out
from .located import located_backbone
from .side_execution import StagedModel
from .weights import pack_backbone


class Tuned(StagedModel):
    """A model with methods in place on its backbone. Verbs and their meaning are PEFT's.

    Attributes:
        model: The whole model, with the active adapter's grafts in place.
        backbone: The part of it that methods change: all of a model that classifies.
        backbone_path: Where that part is; None where the model classifies and has nothing else.
        sides: The active adapter's side networks.
        sites: Every site of the backbone, by its path in the model, measured before anything was
            changed.
        active: Name of the adapter in place.
        heads: Paths of what trains whatever the method: the classifier's modules, or all modules
            beside the backbone.
        base_sha256: Hash of what is frozen of the model before anything could train, and before
            weights were rounded; empty on the meta device.
    """

    def __init__(
        self, model: nn.Module, backbone_path: str | None = None, head: Head = "train"
    ) -> None:
        super().__init__()
        prepare(model)
        self.backbone_path, self.head = backbone_path, head
        if backbone_path is None:
            self.family = family_of(model)
            self.sites: Sites = measure(model, self.family)
            self.heads = tuple(s.path for s in self.sites.of(Role.HEAD))
        else:
            part = part_at(model, backbone_path)
            self.family = family_of(core(part)[1])
            self.sites = measure_part(part, self.family, backbone_path)
            self.heads = holders(model, backbone_path) if head == "train" else ()
        self.model = model.requires_grad_(False)
        self.sides = nn.ModuleDict()
        self.adapters: dict[str, Adapter] = {}
        self.active = ""
        on_meta = next(model.parameters()).is_meta
        self.base_sha256 = "" if on_meta else fingerprint(model, backbone_path, head)

    @property
    def backbone(self) -> Any:
        """The part of the model that methods change."""
        return find(self.model, self.backbone_path or "")

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods of the active adapter."""
        return self.adapters[self.active].methods

    @property
    def notes(self) -> list[str]:
        """What to know of the active adapter: where it does not reach, and other frozen weights."""
        adapter = self.adapters[self.active]
        if adapter.frozen_dtype in (None, self.frozen_dtype):
            return list(adapter.notes)
        return [
            *adapter.notes,
            f"trained on frozen weights in {adapter.frozen_dtype}, and these are in"
            f" {self.frozen_dtype}; set_frozen_dtype gives original weights the dtype of the"
            " training",
        ]

    @property
    def frozen_dtype(self) -> FrozenDtype:
        """What the backbone's frozen weights are kept in."""
        return frozen_dtype_of(self.model)

    @property
    def num_classes(self) -> int:
        """Classes of the active adapter's classifier; 0 where there is none."""
        return self.adapters[self.active].classes

    def train(self, mode: bool = True) -> Tuned:
        """Switch to training; a frozen BatchNorm stays in eval so that its statistics do not move.

        Args:
            mode: Whether to train.

        Returns:
            Itself.
        """
        super().train(mode)
        for m in self.model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and not _moves(m):
                m.eval()
        return self

    def add_adapter(
        self,
        name: str,
        *methods: Method,
        num_classes: int | None = None,
        head_init: HeadInit = "trunc_normal",
    ) -> None:
        """Build an adapter without putting it in place.

        Args:
            name: Its name.
            *methods: What it trains, innermost first.
            num_classes: Classes of its classifier; by default the backbone's.
            head_init: How a new classifier starts; see `apply`.

        Warns:
            LeftOutWarning: A method does not reach all places of its kind.

        Raises:
            InputError: The name is taken, or a method trains weights that are kept in few bits.
            Unsupported: A method cannot live on this backbone; nothing was changed.
        """
        if name in self.adapters:
            raise InputError(f"adapter {name!r} exists; choose another name")
        names = [method_name(type(m)) for m in methods]
        if twice := [n for n in names if names.count(n) > 1]:
            raise InputError(f"{twice[0]} is given twice; one adapter takes each method once")
        edits = [(n, e) for n, m in zip(names, methods, strict=True) for e in m.edits(self.sites)]
        for n, edit in edits:
            if isinstance(edit, Beside):
                self._refuse_beside(n, edit)
        with self.disable_adapter():
            heads, classes = self._new_heads(num_classes, head_init)
            self.adapters[name] = build(self.model, methods, edits, heads, classes)
        for n, method in zip(names, methods, strict=True):
            made = [edit for by, edit in edits if by == n]
            self.adapters[name].notes += left_out(n, method, made, self.sites)
        for line in self.adapters[name].notes:
            warnings.warn(line, LeftOutWarning, stacklevel=2)

    def _refuse_beside(self, method: str, edit: Beside) -> None:
        """Refuse a side network where nothing runs it."""
        if self.backbone_path is not None and not edit.maps:
            raise Unsupported(
                f"{method} runs beside the blocks, with tokens of its own or inside of them, and"
                " this backbone gives feature maps to other parts of the model"
            )
        if not (self.along if self.backbone_path is not None else self.blocks):
            raise Unsupported(
                f"{method} runs beside the blocks, and no family table says which modules of this"
                " backbone are blocks"
            )

    def _new_heads(
        self, num_classes: int | None, init: HeadInit
    ) -> tuple[dict[str, nn.Module], int]:
        """Say which modules an adapter trains besides, and how many classes they tell apart."""
        if self.backbone_path is not None:
            return {p: self.model.get_submodule(p) for p in self.heads}, 0
        own = outputs(self.model, self.heads)
        if num_classes in (None, own):
            heads = {p: self.model.get_submodule(p) for p in self.heads}
        else:
            heads = new_classifier(self.model, num_classes, init)
        inside = {p: m.named_modules(prefix=p) for p, m in heads.items()}
        return {p: m for modules in inside.values() for p, m in modules}, num_classes or own

    def set_adapter(self, name: str) -> None:
        """Put an adapter in place of the active one.

        Args:
            name: Which.

        Raises:
            UnknownName: No adapter has that name.
            InputError: The active adapter trains the backbone's own weights in place.
        """
        if name not in self.adapters:
            raise UnknownName("adapter", name, self.adapters)
        if name != self.active:
            self._may_leave()
        self._take_out()
        adapter = self.adapters[name]
        adapter.put_in(self.model)
        self.sides = nn.ModuleDict(dict(adapter.sides))
        self.active = name
        self.train(self.training)

    def _may_leave(self) -> None:
        if self.active and (lost := [m for m in self.methods if m.overwrites]):
            raise InputError(
                f"{method_name(type(lost[0]))} trains the backbone's own weights in place; no"
                " copy of the backbone is left to return to"
            )

    def _take_out(self) -> None:
        if self.active:
            self.adapters[self.active].take_out(self.model)
            self.sides, self.active = nn.ModuleDict(), ""

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Be the untouched backbone for a while.

        Yields:
            Nothing.

        Raises:
            InputError: The active adapter trains the backbone's own weights in place.
        """
        name = self.active
        self._may_leave()
        self._take_out()
        try:
            yield
        finally:
            if name:
                self.set_adapter(name)

    def unload_active(self) -> None:
        """Be the untouched backbone, no adapter in place.

        Raises:
            InputError: The active adapter trains the backbone's own weights in place.
        """
        self._may_leave()
        self._take_out()

    def adapter_state(self) -> dict[str, Tensor]:
        """Collect everything the active adapter trained, and BatchNorm statistics that moved.

        Returns:
            Tensors by `site path/method/name`; the backbone itself and side networks are `.`.
        """
        return self.adapters[self.active].state(self.model)

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state in; every key and shape must match.

        Args:
            state: What `adapter_state` gave.

        Raises:
            InputError: A key is missing or unexpected, a shape differs, or numbers are of another
                kind (whole or complex, where the model's are real); nothing was copied.
        """
        own = self.adapter_state()
        state = {key if key in own else plain(key): value for key, value in state.items()}
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise InputError(
                f"the adapter file does not match this adapter: {len(missing)} keys missing"
                f" {missing[:2]},"
                f" {len(extra)} unexpected {extra[:2]}"
            )
        state = self.adapters[self.active].fitted(state)
        for key, value in own.items():
            if value.shape != state[key].shape:
                raise InputError(
                    f"{key} has shape {tuple(state[key].shape)} in the file and"
                    f" {tuple(value.shape)} in the model"
                )
            if not _alike(value, state[key]):
                raise InputError(
                    f"{key} is of {str(state[key].dtype).removeprefix('torch.')} in the file and of"
                    f" {str(value.dtype).removeprefix('torch.')} in the model"
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def trainable_counts(self) -> tuple[int, int]:
        """Count parameters, whatever bytes they are kept in.

        Returns:
            Those that train, and all, side networks and grafts included.
        """
        parameters = list(self.parameters())
        every = sum(p.numel() for p in parameters) + hidden_numbers(self)
        return sum(p.numel() for p in parameters if p.requires_grad), every

    def print_trainable_parameters(self) -> None:
        """Print the line PEFT users know."""
        trained, total = self.trainable_counts()
        print(
            f"trainable params: {trained:,d} || all params: {total:,d}"
            f" || trainable%: {100 * trained / total:.4f}"
        )

    def save_pretrained(self, folder: Path | str, **record: Any) -> None:
        """Write the active adapter: what trained, nothing that is frozen.

        Args:
            folder: Where to; made if missing.
            **record: More to keep in the config (pre-processing, class names, ...); plain JSON.
        """
        config = {
            "base_model_name_or_path": architecture(self.model),
            "base_model_sha256": self.base_sha256,
            "frozen_dtype": self.frozen_dtype,
            "methods": [describe(m) for m in self.methods],
            "num_classes": self.num_classes,
            **self._place(),
            "versions": {p: version(p) for p in ("lowtide", "torch", "timm")},
            **record,
        }
        write_adapter(Path(folder), config, self.adapter_state())

    def _place(self) -> dict[str, Any]:
        """Say where the backbone is, if it is not all of the model."""
        if self.backbone_path is None:
            return {}
        return {"backbone_path": self.backbone_path or WHOLE, "head": self.head}

    def load_adapter(self, folder: Path | str, name: str) -> None:
        """Add a saved adapter and switch to it; on any error the active one stays.

        Args:
            folder: What `save_pretrained` wrote to.
            name: Name for the adapter.

        Raises:
            InputError: The files are damaged, or the backbone is not the one recorded.
        """
        content, state = read_adapter(Path(folder))
        config = AdapterConfig.of(content, folder)
        refuse_other_part(self.backbone_path, self.head, config, folder)
        refuse_other_base(self.base_sha256, self.model, config, folder)
        before = self.active
        self.add_adapter(name, *config.methods, num_classes=config.num_classes or None)
        try:
            self.set_adapter(name)
            self.load_adapter_state(state)
            self.adapters[name].frozen_dtype = config.frozen_dtype
        except BaseException:
            self._take_out()  # nothing was copied yet, so even an overwriting method may leave
            if before:
                self.set_adapter(before)
            del self.adapters[name]
            raise

    def merge_and_unload(self) -> nn.Module:
        """Fold every graft into the backbone and give the plain backbone back.

        Returns:
            The backbone, equal to this model in eval mode; this object must not be used again.

        Raises:
            Unsupported: Something cannot be folded; nothing was changed.
        """
        model, unfolded = merge(self)
        if unfolded:
            more = f" (and {len(unfolded) - 1} more)" if len(unfolded) > 1 else ""
            raise Unsupported(f"cannot merge {unfolded[0]}{more}")
        return model


declare((__name__,), (Tuned.__name__,))


def apply(
    model: Any,
    *methods: Method,
    name: str = "default",
    num_classes: int | None = None,
    head_init: HeadInit = "trunc_normal",
    backbone: str | None = None,
    head: Head = "train",
) -> Tuned:
    """Freeze a backbone and put methods in place.

    The backbone may be a part of the model, as in a detector: methods change that part, and the
    rest (neck, decoder, heads) trains whole. It is found by itself where the library marks it: in
    torchvision's detectors and segmenters, segmentation_models_pytorch, transformers' image models,
    and what timm's `features_only` gives.

    Args:
        model: The model; changed in place. What `torch.compile` or a data-parallel wrapper put
            around it is left off: wrap the result instead.
        *methods: What trains, innermost first; the classifier always trains.
        name: Name of the adapter.
        num_classes: Classes of the new classifier; by default the backbone's own classifier stays.
        head_init: How a new classifier starts: `trunc_normal` with weights of deviation 0.02 and
            biases at zero, as DTL and SSF have it; `zero`, as RLRR and ARC have it, so that the
            first output is the same for all classes; `own`, as the backbone's library has it.
        backbone: Dotted path of the part that is the backbone, such as `backbone.body`; empty for a
            model that is a backbone without a classifier. By default it is looked for.
        head: Whether what is not the backbone trains (`train`) or stays as it is (`frozen`), where
            the backbone is a part.

    Returns:
        The tuned model; it takes what the model takes.

    Raises:
        InputError: The backbone has no classifier and `num_classes` is not given, or the options
            do not fit the model.
        Unsupported: A method cannot live on this backbone. Whatever is raised, the backbone is as
            it was.
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes is at least 1, not {num_classes}")
    with restored_on_error(model):
        model = unwrapped(model)
        path = located_backbone(model, backbone, head, num_classes)
        if path is None:
            classes = getattr(model, "num_classes", num_classes)
            if num_classes not in (None, classes) and hasattr(model, "reset_classifier"):
                reset(model, num_classes, head_init)
        tuned = Tuned(model, path, head)
        if path is None and not tuned.heads:
            raise InputError(
                "the backbone has no classifier; give num_classes, or backbone='' to tune it as it"
                " is"
            )
        tuned.add_adapter(name, *methods, num_classes=num_classes, head_init=head_init)
        _put_in_checked(tuned, name, methods)
    return tuned


def _put_in_checked(tuned: Tuned, name: str, methods: tuple[Method, ...]) -> None:
    """Put the first adapter in place; refuse what would train nothing or begin elsewhere."""
    image = image_shape(tuned.backbone)
    whole = tuned.backbone_path is None
    before = outputs_on_noise(tuned, image, whole)
    with blame_methods(tuned.model, [method_name(type(m)) for m in methods]):
        tuned.set_adapter(name)
        refuse_unreached(tuned, image, whole)
        after = outputs_on_noise(tuned, image, whole)
    if all(m.identity for m in methods):
        refuse_changed_outputs(before, after)
    if not any(p.requires_grad for p in tuned.parameters()):
        raise InputError(
            f"{' + '.join(method_name(type(m)) for m in methods)} trains nothing here: the backbone"
            " has no classifier; give num_classes, or another method"
        )


def load(model: nn.Module, folder: Path | str, *, name: str = "default") -> Tuned:
    """Put a saved adapter on the backbone it was trained on.

    Args:
        model: The model, with the same pre-trained weights; changed in place.
        folder: What `save_pretrained` wrote to.
        name: Name for the adapter.

    Returns:
        The tuned model, in eval mode.

    Raises:
        InputError: The files are damaged, or the backbone is not the one recorded. The backbone is
            as it was.
    """
    content, state = read_adapter(Path(folder))
    config = AdapterConfig.of(content, folder)
    path, head = config.backbone_path, config.head
    with restored_on_error(model):
        model = unwrapped(model)
        if path is not None and architecture(model) == config.base_model_name_or_path:
            part_at(model, path)
        refuse_other_base(fingerprint(model, path, head), model, config, folder)
        classes = config.num_classes or None
        options: Any = {} if path is None else {"backbone": path, "head": head}
        tuned = apply(model, *config.methods, name=name, num_classes=classes, **options)
        tuned.load_adapter_state(state)
        tuned.adapters[name].frozen_dtype = config.frozen_dtype
    return tuned.eval()


def set_frozen_dtype(model: nn.Module, dtype: FrozenDtype) -> nn.Module:
    """Keep the frozen weights of linear maps and convolutions in 16, 8 or 4 bits.

    What trains stays as it is, and so do the classifier, norms, biases and embeddings. An adapter's
    files name the dtype and record the hash of the original weights: loaded on the original
    backbone, it merges into the original weights.

    Args:
        model: A tuned model, its adapters in place; or a backbone, all of which is frozen with it.
            Changed in place.
        dtype: `bf16`, `int8`, `nf4` or `int4`; `fp32` makes the weights wide again, rounded as they
            are.

    Returns:
        The same object.

    Raises:
        InputError: Weights are kept in another dtype already, or none is frozen.
        UnknownName: There is no such dtype.
    """
    if dtype not in get_args(FrozenDtype):
        raise UnknownName("frozen dtype", dtype, get_args(FrozenDtype))
    backbone = model.model if isinstance(model, Tuned) else model
    if dtype == "fp32":
        unpack_frozen(backbone)
        backbone.__dict__.pop(ORIGINAL, None)
    elif isinstance(model, Tuned):
        _refuse_all_trained(model, dtype)
        waiting = [p for adapter in model.adapters.values() for *_, p in adapter.thawed]
        pack_frozen(backbone, dtype, but=waiting)
    else:
        pack_backbone(backbone, dtype)
    return model


def _refuse_all_trained(tuned: Tuned, dtype: FrozenDtype) -> None:
    """Refuse to keep frozen weights in few bits where there are none."""
    if tuned.frozen_dtype == "fp32" and not any(packable(tuned.model, dtype)):
        names = " + ".join(method_name(type(m)) for m in tuned.methods)
        raise InputError(
            f"{names} leaves no weight frozen that could be kept in {dtype}: expected frozen_dtype"
            " fp32, or a method that trains little"
        )


def merge(tuned: Tuned) -> tuple[nn.Module, list[str]]:
    """Fold the active adapter into the backbone, if all of it folds.

    Weights in few bits are made wide first, so that the result equals the model as it was trained.

    Args:
        tuned: A tuned model; once merged it must not be used again.

    Returns:
        The plain backbone and no names; or the backbone as it stands, grafts in place, and what
        cannot be folded, each with the reason.
    """
    dtype = tuned.frozen_dtype
    set_frozen_dtype(tuned, "fp32")
    recomputing, tuned.checkpointing = tuned.checkpointing, False
    whole = tuned.backbone_path is None
    total = tuned.family.total(tuned.backbone) if whole else None
    folded, unfolded = tuned.adapters[tuned.active].merged(tuned.model, total)
    if unfolded:
        tuned.checkpointing = recomputing
        set_frozen_dtype(tuned, dtype)
    if not unfolded:
        for path, module in folded.items():
            exchange_hooks(module, find(tuned.model, path))
            set_module(tuned.model, path, module.train(tuned.training))
        decompress(tuned).requires_grad_(True)
    return tuned.model, unfolded


def _alike(own: Tensor, given: Tensor) -> bool:
    """Whether numbers may be copied: the same kind, or real ones of another precision."""
    return own.dtype == given.dtype or (own.is_floating_point() and given.is_floating_point())


def _moves(norm: nn.Module) -> bool:
    """Whether a BatchNorm's statistics should follow the data: only if its weight trains."""
    weight = norm._parameters.get("weight")
    return weight is not None and weight.requires_grad
