"""The verbs: apply methods to a backbone, switch adapters, merge them away."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import InputError, LowtideError, Unsupported, unknown
from .families import Family, classifiers, family_of, hollow, image_shape, measure, prepare
from .graft import Beside, Edit, Graft, Method, Side, Swap, Thaw, method_name
from .site import Role, Sites

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class Adapter:
    """What one set of methods brought, ready to be put in place or taken out.

    Attributes:
        methods: The methods that made it.
        grafts: Path, method name and graft, outermost last.
        thawed: Path, method name, parameter name and the parameter that trains.
        sides: Method name and side network.
        classes: Number of classes of its classifier.
        originals: What the backbone had in the places of `thawed`, while this adapter is in place.
    """

    methods: tuple[Method, ...]
    grafts: list[tuple[str, str, Graft]] = field(default_factory=list)
    thawed: list[tuple[str, str, str, nn.Parameter]] = field(default_factory=list)
    sides: list[tuple[str, Side]] = field(default_factory=list)
    classes: int = 0
    originals: dict[tuple[str, str], nn.Parameter] = field(default_factory=dict)


class Tuned(nn.Module):
    """A backbone with methods in place. Verbs and their meaning are PEFT's.

    Attributes:
        backbone: The model, with the active adapter's grafts in place.
        sides: The active adapter's side networks.
        sites: Every site, measured before anything was changed.
        checkpointing: Recompute each block in backward instead of keeping its activations.
        active: Name of the adapter in place.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        prepare(backbone)
        self.family: Family = family_of(backbone)
        self.sites: Sites = measure(backbone, self.family)
        self.backbone = backbone.requires_grad_(False)
        self.blocks = frozenset(s.path for s in self.sites.of(Role.BLOCK))
        self.sides = nn.ModuleDict()
        self.adapters: dict[str, Adapter] = {}
        self.checkpointing = False
        self.active = ""

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods of the active adapter."""
        return self.adapters[self.active].methods

    @property
    def num_classes(self) -> int:
        """Classes of the active adapter's classifier."""
        return self.adapters[self.active].classes

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: `(B, 3, H, W)`, pre-processed as the checkpoint wants.

        Returns:
            Logits `(B, K)`.
        """
        if not self.sides and not self.checkpointing:
            return self.backbone(x)
        family, model = self.family, self.backbone
        x = family.stem(model, x)
        states = {name: side.begin(x) for name, side in self.sides.items()}
        for path in family.chain(model):
            block = model.get_submodule(path)
            x = checkpoint(block, x, use_reentrant=False) if self._recomputes(x) else block(x)
            for name, side in self.sides.items() if path in self.blocks else ():
                x, states[name] = side.step(path, x, states[name])
        for name, side in self.sides.items():
            x = side.finish(x, states[name])
        x = model.forward_head(family.finish(model, x), pre_logits=True)  # type: ignore[operator]
        x = model.get_classifier()(x)  # type: ignore[operator]
        for name, side in self.sides.items():
            x = side.classify(x, states[name])
        return x

    def _recomputes(self, x: Tensor) -> bool:
        return self.checkpointing and torch.is_grad_enabled()

    def train(self, mode: bool = True) -> Tuned:
        """Switch to training; a frozen BatchNorm stays in eval so that its statistics do not move.

        Args:
            mode: Whether to train.

        Returns:
            Itself.
        """
        super().train(mode)
        for m in self.backbone.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and not _moves(m):
                m.eval()
        return self

    def add_adapter(self, name: str, *methods: Method, num_classes: int | None = None) -> None:
        """Build an adapter without putting it in place.

        Args:
            name: Its name.
            *methods: What it trains.
            num_classes: Classes of its classifier; by default the backbone's.

        Raises:
            InputError: The name is taken.
            Unsupported: A method cannot live on this backbone.
        """
        if name in self.adapters:
            raise InputError(f"adapter {name!r} exists; choose another name")
        planned = [
            (method_name(type(m)), e) for m in methods for e in m.edits(self.sites)
        ]  # every refusal happens before anything is changed
        with self.disable_adapter():
            adapter = _build(self, methods, planned, num_classes)
        self.adapters[name] = adapter

    def set_adapter(self, name: str) -> None:
        """Put an adapter in place of the active one.

        Args:
            name: Which.

        Raises:
            InputError: No adapter has that name.
        """
        if name not in self.adapters:
            raise unknown("adapter", name, self.adapters)
        self._take_out()
        adapter = self.adapters[name]
        like = next(self.backbone.parameters())
        for path, _, graft in adapter.grafts:
            graft.base = self.backbone.get_submodule(path)
            _set(self.backbone, path, graft.to(like.device))
        for path, _, pname, p in adapter.thawed:
            module = _root(self.backbone.get_submodule(path))
            p.data = p.data.to(like.device)
            adapter.originals[path, pname] = module._parameters[pname]  # type: ignore[assignment]
            module._parameters[pname] = p.requires_grad_(True)
        for method, side in adapter.sides:
            self.sides[method] = side.to(like.device)
        self.active = name
        self.train(self.training)

    def _take_out(self) -> None:
        if not self.active:
            return
        adapter = self.adapters[self.active]
        for (path, pname), original in adapter.originals.items():
            _root(self.backbone.get_submodule(path))._parameters[pname] = original
        adapter.originals.clear()
        for path, _, graft in reversed(adapter.grafts):
            _set(self.backbone, path, graft.base)
        self.sides = nn.ModuleDict()
        self.active = ""

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Be the untouched backbone for a while.

        Yields:
            Nothing.

        Raises:
            InputError: The active adapter trains the backbone's own weights in place.
        """
        name = self.active
        if name and (lost := [m for m in self.methods if m.overwrites]):
            raise InputError(
                f"{method_name(type(lost[0]))} trains the backbone's own weights in place; there is"
                " no backbone to return to"
            )
        self._take_out()
        try:
            yield
        finally:
            if name:
                self.set_adapter(name)

    def adapter_state(self) -> dict[str, Tensor]:
        """Collect everything the active adapter trained, and BatchNorm statistics that moved.

        Returns:
            Tensors by `site path/method/name`; the backbone itself and side networks are `.`.
        """
        adapter, seen, state = self.adapters[self.active], set(), {}
        for path, method, graft in adapter.grafts:
            for name, value in graft.own():
                if id(value) not in seen:  # factors shared by several grafts are kept once
                    seen.add(id(value))
                    state[f"{path or '.'}/{method}/{name}"] = value
        for path, method, pname, p in adapter.thawed:
            state[f"{path or '.'}/{method}/{pname}"] = p
            module = _root(self.backbone.get_submodule(path))
            if pname == "weight" and isinstance(module, nn.modules.batchnorm._BatchNorm):
                for name in STATISTICS:
                    if (value := module._buffers.get(name)) is not None:
                        state[f"{path}/{method}/{name}"] = value
        for method, side in adapter.sides:
            for name, value in side.state_dict(keep_vars=True).items():
                state[f"./{method}/{name}"] = value
        return {k: v.detach() for k, v in state.items()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Copy a saved state in; every key and shape must match.

        Args:
            state: What `adapter_state` gave.

        Raises:
            InputError: A key is missing or unexpected, or a shape differs; nothing was copied.
        """
        own = self.adapter_state()
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or extra:
            raise InputError(
                f"the file does not fit this adapter: {len(missing)} keys missing {missing[:2]},"
                f" {len(extra)} unexpected {extra[:2]}"
            )
        for key, value in own.items():
            if value.shape != state[key].shape:
                raise InputError(
                    f"{key} has shape {tuple(state[key].shape)} in the file and"
                    f" {tuple(value.shape)} in the model"
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(state[key])

    def trainable_counts(self) -> tuple[int, int]:
        """Count parameters.

        Returns:
            Those that train, and all, side networks and grafts included.
        """
        parameters = list(self.parameters())
        return sum(p.numel() for p in parameters if p.requires_grad), sum(
            p.numel() for p in parameters
        )

    def print_trainable_parameters(self) -> None:
        """Print the line PEFT users know."""
        trained, total = self.trainable_counts()
        print(
            f"trainable params: {trained:,d} || all params: {total:,d}"
            f" || trainable%: {100 * trained / total:.4f}"
        )

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


def apply(
    model: nn.Module, *methods: Method, name: str = "default", num_classes: int | None = None
) -> Tuned:
    """Freeze a backbone and put methods in place.

    Args:
        model: The backbone; changed in place.
        *methods: What trains, innermost first; the classifier always trains.
        name: Name of the adapter.
        num_classes: Classes of the new classifier; by default the backbone's own classifier stays.

    Returns:
        The tuned model.

    Raises:
        InputError: The backbone has no classifier and `num_classes` is not given.
    """
    if num_classes is not None and getattr(model, "num_classes", num_classes) != num_classes:
        model.reset_classifier(num_classes)  # type: ignore[operator]
    if not classifiers(model):
        raise InputError("the backbone has no classifier; give num_classes")
    tuned = Tuned(model)
    tuned.add_adapter(name, *methods, num_classes=num_classes)
    before = _answer(tuned)
    tuned.set_adapter(name)
    _guard(tuned, before)
    return tuned


def merge(tuned: Tuned) -> tuple[nn.Module, list[str]]:
    """Fold every graft that can be folded into the backbone.

    Args:
        tuned: A tuned model; when everything folds it is taken apart and must not be used again.

    Returns:
        The plain backbone and no names, or the untouched backbone with grafts and what could not
        be folded, each with the reason.
    """
    adapter = tuned.adapters[tuned.active]
    unfolded = [f"{method}'s side network: {side.unmergeable}" for method, side in adapter.sides]
    folded: dict[str, nn.Module] = {}
    for path, method, graft in adapter.grafts:
        standing, graft.base = graft.base, folded.get(path, graft.base)
        plain = graft.merged()
        graft.base = standing
        if plain is None:
            unfolded.append(f"{method} at {path}: {graft.unmergeable}")
        else:
            folded[path] = plain
    if not unfolded:
        for path, module in folded.items():
            _set(tuned.backbone, path, module.train(tuned.training))
        tuned.backbone.requires_grad_(True)
    return tuned.backbone, unfolded


def fingerprint(tuned: Tuned) -> str:
    """Hash the untouched backbone, classifier left out.

    Args:
        tuned: The tuned model.

    Returns:
        SHA-256 of its parameters and persistent buffers, in hexadecimal.
    """
    digest = hashlib.sha256()
    with tuned.disable_adapter():
        heads = tuple(f"{p}." for p in classifiers(tuned.backbone))
        for key, value in sorted(tuned.backbone.state_dict().items()):
            if not key.startswith(heads):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _build(
    tuned: Tuned, methods: tuple[Method, ...], planned: list[tuple[str, Edit]], classes: int | None
) -> Adapter:
    adapter = Adapter(methods)
    overwrites = any(m.overwrites for m in methods)
    owned: set[tuple[str, str]] = set()
    for method, edit in planned:
        if isinstance(edit, Thaw):
            module = tuned.backbone.get_submodule(edit.site.path)
            for pname in edit.names:
                if (edit.site.path, pname) not in owned:
                    owned.add((edit.site.path, pname))
                    p = module._parameters[pname]
                    mine = p if overwrites else nn.Parameter(p.detach().clone())
                    adapter.thawed.append((edit.site.path, method, pname, mine))
        elif isinstance(edit, Swap):
            if not edit.site.in_shape:
                raise Unsupported(
                    f"{method} cannot graft on {edit.site.path}: the backbone never calls it"
                )
            inner = [g for path, _, g in adapter.grafts if path == edit.site.path]
            module = inner[-1] if inner else tuned.backbone.get_submodule(edit.site.path)
            adapter.grafts.append((edit.site.path, method, edit.graft(module)))
    for path in classifiers(tuned.backbone):
        module = tuned.backbone.get_submodule(path)
        adapter.classes = classes or module.weight.shape[0]
        for pname, p in module._parameters.items():
            if p is not None:
                adapter.thawed.append((path, "head", pname, _head(p, pname, adapter.classes)))
    for method, edit in planned:
        if isinstance(edit, Beside):
            if not tuned.family.chain(tuned.backbone):
                raise Unsupported(f"{method} runs beside blocks, and this backbone has no table")
            adapter.sides.append((method, edit.side(adapter.classes)))
    return adapter


def _head(p: nn.Parameter, pname: str, classes: int) -> nn.Parameter:
    """Copy a classifier's parameter, or make a new one for another number of classes."""
    if len(p) == classes:
        return nn.Parameter(p.detach().clone())
    fresh = torch.zeros(classes, *p.shape[1:], device=p.device, dtype=p.dtype)
    return nn.Parameter(nn.init.trunc_normal_(fresh, std=0.02) if pname == "weight" else fresh)


def _moves(norm: nn.Module) -> bool:
    """Whether a BatchNorm's statistics should follow the data: only if its weight trains."""
    weight = norm._parameters.get("weight")
    return weight is not None and weight.requires_grad


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    root.get_submodule(parent)._modules[leaf] = module


def _root(module: nn.Module) -> nn.Module:
    return module.root if isinstance(module, Graft) else module


def _probe(model: nn.Module, batch: int) -> Tensor:
    like = next(model.parameters())
    shape = (batch, *image_shape(model))
    generator = torch.Generator().manual_seed(0)
    if like.is_meta:
        return torch.empty(shape, device="meta", dtype=like.dtype)
    return torch.randn(shape, generator=generator).to(like)


def _answer(tuned: Tuned) -> Tensor | None:
    """What the untouched backbone says to a fixed image; None where there are no weights."""
    image = _probe(tuned.backbone, 1)
    if image.is_meta:
        return None
    training = tuned.training
    with torch.no_grad():
        answer = tuned.eval().backbone(image)
    tuned.train(training)
    return answer


def _guard(tuned: Tuned, before: Tensor | None) -> None:
    """Refuse dead adapters, and methods that promise to start at the backbone and do not.

    Raises:
        Unsupported: A declared parameter has no gradient path.
        LowtideError: The output moved although every method promises the identity.
    """
    shadow = hollow(tuned)
    shadow(_probe(shadow, 2)).sum().backward()
    dead = [n for n, p in shadow.named_parameters() if p.requires_grad and p.grad is None]
    if dead:
        raise Unsupported(
            f"no gradient reaches {dead[0]} (and {len(dead) - 1} more): the backbone does not use"
            " the module it was put on"
        )
    if before is None or not all(m.identity for m in tuned.methods):
        return
    if before.shape == (after := _answer(tuned)).shape:
        error = (after - before).abs().max() / before.abs().max().clamp_min(1e-6)
        if error > torch.finfo(before.dtype).eps ** 0.5:
            raise LowtideError(f"the methods promise to start at the backbone; {error:.1e} off")
