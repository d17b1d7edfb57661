"""The public face: a frozen backbone, and adapters by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.wrapped import refuse_no_module, unwrapped
from ..errors import InputError, UnknownName, Unsupported, shown
from ..families import classifiers, image_shape, reset
from ..tuning.adapter_config import AdapterConfig
from ..tuning.tuned import Tuned
from ..values import Count, read
from .given import configs_of, shared_config
from .lock import Lock
from .regions import Regions
from .rider import Rider, nbytes
from .streams import Stream, Streams

Images = Tensor | Mapping[str, Tensor]


class MultiAdapter(nn.Module):
    """One frozen backbone and any number of saved adapters, for inference.

    What adapters leave untouched runs once for all of them: of DTL all blocks up to M, of linear,
    MLP-k, LST and UniPT the whole backbone. From where they change it, their feature maps go on
    side by side in one batch, and edits of one kind are batched products. The result is that of
    each adapter loaded alone, to the last bits that batched products allow.

    An adapter that changes matrices of the backbone (Partial-k) keeps its own copies of them and
    has those elements run for it alone; one that overwrites the backbone (full fine-tuning) is
    refused.

    Attributes:
        configs: What is known of each adapter: methods, classes, pre-processing.
        rows_at_once: Most feature maps, of all adapters, that a block is run on at once; more are
            run in parts, which bounds memory and keeps a processor's caches warm. None: all.
    """

    def __init__(
        self,
        backbone: Any,
        adapters: Mapping[str, Path | str] | None = None,
        *,
        rows_at_once: int | None = 32,
    ) -> None:
        """Put adapters on a backbone.

        Args:
            backbone: The backbone they were trained on, with the same pre-trained weights; frozen,
                and plain between calls.
            adapters: Folders by name, as `Tuned.save_pretrained` and `lowtide train` write them.
            rows_at_once: See the attributes; more is faster on a GPU.

        Raises:
            InputError: A folder holds no adapter, or one for another backbone.
            Unsupported: Nothing tells where the backbone has its features, or an adapter changes
                what cannot be shared.
        """
        super().__init__()
        refuse_no_module("MultiAdapter", backbone)
        self.rows_at_once = read("rows_at_once", Count | None, rows_at_once)
        configs = configs_of(adapters or {})
        backbone = unwrapped(backbone)
        if not classifiers(backbone) and configs:
            reset(backbone, next(iter(configs.values())).num_classes, "trunc_normal")
        self._tuned = Tuned(backbone).eval()
        if not self._tuned.heads:
            raise InputError("the backbone has no classifier, and no adapter tells its classes")
        if not hasattr(backbone, "forward_head"):
            kind = type(backbone).__name__
            raise Unsupported(f"{kind} has no forward_features and forward_head, as timm's have")
        self._regions = Regions(
            self._tuned, self._tuned.sites, self._tuned.heads, image_shape(backbone)
        )
        self._riders: dict[str, Rider] = {}
        self.configs: dict[str, AdapterConfig] = {}
        self._lock = Lock()  # edits stand in the one backbone while it runs
        for name, folder in (adapters or {}).items():
            self.load_adapter(folder, name)

    @property
    def backbone(self) -> nn.Module:
        """The backbone, plain."""
        model: nn.Module = self._tuned.backbone
        return model

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters, in the order they were added."""
        return tuple(self._riders)

    def load_adapter(self, folder: Path | str, name: str) -> None:
        """Add a saved adapter; the backbone is not loaded again.

        Args:
            folder: What `save_pretrained` wrote to, or the folder of a run.
            name: Its name here.

        Raises:
            InputError: The name is taken, the files are damaged, or the backbone is another.
            Unsupported: It changes what cannot be shared.
        """
        config = shared_config(folder)
        with self._lock:
            if not isinstance(name, str) or not name:
                raise InputError(f"an adapter's name is a word, not {shown(name)}")
            if name in self._riders:
                raise InputError(f"adapter {shown(name)} exists; choose another name")
            tuned = self._tuned
            tuned.load_adapter(folder, name)
            tuned.unload_active()
            adapter = tuned.adapters[name]
            try:
                rider = Rider.of(name, adapter, tuned.backbone, self._regions)
            except Unsupported:
                del tuned.adapters[name]
                raise
            self._riders[name], self.configs[name] = rider, config

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter.

        Args:
            name: Which.

        Raises:
            UnknownName: No adapter has that name.
        """
        with self._lock:
            self._rider(name)
            del self._riders[name], self.configs[name], self._tuned.adapters[name]

    @torch.no_grad()
    def forward(self, images: Images, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Ask several adapters about the same images.

        Args:
            images: `(B, 3, H, W)`, pre-processed as the weights want. Where adapters want it
                differently: such a batch for each name, and what is the same tensor is run once.
            names: Which adapters; by default all, or those that images are given for.

        Returns:
            Logits `(B, K)` by name, in the order asked.

        Raises:
            UnknownName: No adapter has such a name.
            InputError: There are no images for a name.
        """
        with self._lock:
            given = names if names is not None else images if isinstance(images, Mapping) else None
            asked = [names] if isinstance(names, str) else list(given or ())
            chosen = list(dict.fromkeys(self.adapters if given is None else asked))
            streams: dict[int, Stream] = {}
            for name in chosen:
                rider = self._rider(name)
                if isinstance(images, Mapping) and name not in images:
                    raise InputError(f"there are no images for {name!r}")
                x = images[name] if isinstance(images, Mapping) else images
                at = streams.setdefault(id(x), self._stream(x, ()))
                at.riders += (rider,)
            logits = self._run(list(streams.values()))
            return {name: logits[name] for name in chosen}

    @torch.no_grad()
    def mixed(self, images: Tensor, adapter_names: Sequence[str] | Tensor) -> list[Tensor]:
        """Ask one adapter about each image, all images in one batch.

        Args:
            images: `(B, 3, H, W)`, each pre-processed as its adapter wants.
            adapter_names: The adapter of each image: names, or indices into `adapters`.

        Returns:
            Logits `(K,)` of each image, K the classes of its adapter.

        Raises:
            InputError: Not one adapter for each image.
            UnknownName: No adapter has such a name.
        """
        with self._lock:
            names = self._names(adapter_names)
            if len(names) != len(images):
                raise InputError(
                    f"mixed needs one adapter for each image, not {len(names)} for {len(images)}"
                )
            places: dict[str, list[int]] = {}
            for i, name in enumerate(names):
                places.setdefault(name, []).append(i)
            order = sorted(places, key=self._order)
            mine = images[torch.tensor([i for n in order for i in places[n]], dtype=torch.long)]
            parts = mine.split([len(places[n]) for n in order]) if order else ()
            streams = [
                self._stream(x, (self._rider(n),)) for n, x in zip(order, parts, strict=True)
            ]
            logits = self._run(streams)
            found = {i: row for n in order for i, row in zip(places[n], logits[n], strict=True)}
            return [found[i] for i in range(len(names))]

    def _order(self, name: str) -> Any:
        """Adapters of one kind next to one another, so that their rows are not copied."""
        rider = self._rider(name)
        return str(self.configs[name].methods), list(self._riders).index(rider.name)

    def _names(self, given: Sequence[str] | Tensor) -> list[str]:
        if not isinstance(given, Tensor):
            return [self._rider(n).name for n in given]
        every = self.adapters
        if given.ndim != 1 or given.is_floating_point():
            raise InputError("adapter_names as a tensor are indices, one for each image")
        if wrong := [i for i in given.tolist() if not 0 <= i < len(every)]:
            raise InputError(f"adapter {wrong[0]} is none of the {len(every)} there are")
        return [every[i] for i in given.tolist()]

    def _rider(self, name: str) -> Rider:
        if not isinstance(name, str) or name not in self._riders:
            raise UnknownName("adapter", name, self._riders)
        return self._riders[name]

    def _stream(self, x: Tensor, riders: tuple[Rider, ...]) -> Stream:
        if not isinstance(x, Tensor) or x.ndim != 4:
            raise InputError(f"images are a tensor (B, 3, H, W), not {_what(x)}")
        if not x.shape[0]:
            raise InputError("there are no images: the batch is empty")
        return Stream(x, riders, (x.shape[-2], x.shape[-1]))

    def _run(self, streams: list[Stream]) -> dict[str, Tensor]:
        return Streams(self._tuned, self._regions, streams, self.rows_at_once).run()

    def train(self, mode: bool = True) -> MultiAdapter:
        """Stay in eval mode; adapters are trained one by one.

        Args:
            mode: Whether to train.

        Returns:
            Itself.

        Raises:
            InputError: It is to be trained.
        """
        if mode:
            raise InputError("adapters are trained one by one: lowtide.apply, or lowtide train")
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MultiAdapter:
        """Take the adapters along, to another device or dtype."""
        super()._apply(fn, recurse)
        for rider in self._riders.values():
            rider.convert(fn)
        return self

    def backbone_nbytes(self) -> int:
        """Count the bytes of the backbone.

        Returns:
            Of its parameters and buffers, its own classifier included.
        """
        return nbytes([*self.backbone.parameters(), *self.backbone.buffers()])

    def adapter_nbytes(self, name: str) -> int:
        """Count the bytes that one adapter adds.

        Args:
            name: Which.

        Returns:
            Of what trained, its classifier and its own copies of the backbone's weights included.
        """
        return self._rider(name).nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the backbone and all adapters."""
        return self.backbone_nbytes() + sum(map(self.adapter_nbytes, self.adapters))


def _what(x: object) -> str:
    return f"one of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
