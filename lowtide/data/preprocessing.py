"""From pixels to a model's input: the configuration of its weights, and little else."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision import transforms

from ..core.normalise import Normalise
from ..errors import InputError, UnknownName, shown
from ..values import Side, Within, read
from .distortion import Distortion
from .images import decode
from .pixels import Pixels, input_channels, mean_over_channels, statistics

Augment = Literal["none", "flip", "crop"]
"""What training does to an image at random. `none`: nothing; `flip`: mirror half of them;
`crop`: timm's random resized crop and mirror."""

AUGMENTS: tuple[Augment, ...] = get_args(Augment)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
CROP_MODES = ("center", "squash", "border")


UNDISTORTED = Distortion()

BOUNDS: dict[str, object] = {
    "size": tuple[Side, ...],
    "mean": tuple[Annotated[float, Within(-100, 100)], ...],
    "std": tuple[Annotated[float, Within(1e-4, 1e4)], ...],
    "crop_pct": Annotated[float, Within(0.05, 20)],
    "bits": Annotated[int, Within(8, 16)],
}
"""What the numbers of a pre-processing may be."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pre-trained weights want their images; goes into the run record.

    The mean and standard deviation are of pixels in [0, 1], one per channel.

    Attributes:
        size: Height and width, in pixels.
        mean: Subtracted.
        std: Divided by.
        interpolation: timm's name for it, such as `bicubic`.
        crop_pct: For timm's evaluation crop: output size over resized size.
        crop_mode: For timm's evaluation crop: `center`, `squash` or `border`.
        bits: How many bits the 16-bit pixels of the data it was trained on use, see `decode`.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    bits: int = 16

    @classmethod
    def of(cls, model: nn.Module) -> Preprocessing:
        """Take the configuration of a timm model, as `timm.data.resolve_model_data_config` does.

        Differs: the size is the one the model was built for where it knows that (`img_size=`),
        and a model with one input channel gets the mean over channels, as timm sums the filters.

        Args:
            model: A timm model.

        Returns:
            Its pre-processing.

        Raises:
            InputError: The model takes neither grey nor RGB images.
        """
        config = resolve_model_data_config(model)
        size = getattr(getattr(model, "patch_embed", None), "img_size", None)
        mean, std = tuple(config["mean"]), tuple(config["std"])
        channels = input_channels(model)
        if channels not in {1, 3}:
            raise InputError(f"the model takes {channels} channels: expected 1 (grey) or 3 (RGB)")
        if channels == 1:
            mean, std = mean_over_channels(mean), mean_over_channels(std)
        height, width = size or config["input_size"][-2:]
        return cls(
            size=(height, width),
            mean=mean,
            std=std,
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    def normalized(self, pixels: Pixels) -> Preprocessing:
        """Take another mean and standard deviation.

        Args:
            pixels: Whose.

        Returns:
            The same pre-processing otherwise.

        Raises:
            UnknownName: There is no such choice.
        """
        if pixels == "checkpoint":
            return self
        mean, std = statistics(pixels, self.channels)
        return dataclasses.replace(self, mean=mean, std=std)

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return len(self.mean)

    def decode(self, path: Path) -> Image.Image:
        """Decode one image for `transform`.

        Args:
            path: The file.

        Returns:
            The whole image, of mode `RGB` or `L`.

        Raises:
            UnreadableImage: It cannot be decoded.
        """
        return decode(path, self.channels, self.bits)

    def to_dict(self) -> dict[str, object]:
        """Write as JSON can hold it.

        Returns:
            One entry per field, tuples as lists.
        """
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_dict` wrote.

        Args:
            data: The parsed JSON.

        Returns:
            The same pre-processing.

        Raises:
            InputError: A field is missing, unknown or of the wrong type.
            UnknownName: There is no such interpolation or crop mode.
        """
        data = {"bits": 16, **data}  # what was written before there were bits
        names = [field.name for field in dataclasses.fields(cls)]
        if sorted(map(str, data)) != sorted(names):
            given = sorted(map(str, data))
            raise InputError(f"pre-processing has {shown(given)}: expected {sorted(names)}")
        values = {n: read(f"pre-processing: {n}", BOUNDS[n], data[n]) for n in BOUNDS}
        size, mean, std = values["size"], values["mean"], values["std"]
        crop_pct, bits = values["crop_pct"], values["bits"]
        if len(size) != 2:
            raise InputError(f"pre-processing: size must be height and width, not {shown(size)}")
        if data["interpolation"] not in INTERPOLATIONS:
            raise UnknownName("interpolation", data["interpolation"], INTERPOLATIONS)
        if data["crop_mode"] not in CROP_MODES:
            raise UnknownName("crop mode", data["crop_mode"], CROP_MODES)
        if len(mean) != len(std) or len(mean) not in {1, 3}:
            raise InputError(
                f"pre-processing: mean {shown(mean)} and std {shown(std)}, expected 1 or 3 of each"
            )
        interpolation, crop_mode = str(data["interpolation"]), str(data["crop_mode"])
        return cls(size, mean, std, interpolation, crop_pct, crop_mode, bits)

    @property
    def normalise(self) -> Normalise:
        """The last step from pixels to the model's input."""
        return Normalise(self.mean, self.std)

    def transform(
        self,
        *,
        train: bool,
        augment: Augment = "none",
        distortion: Distortion = UNDISTORTED,
        pixels: bool = False,
    ) -> Transform:
        """Make the transform of a split.

        `none` and `flip` squeeze the whole image into the model's size, in training and in
        evaluation alike, as VTAB-1k practice does; `crop` evaluates with timm's own crop.

        Args:
            train: Whether the images are trained on.
            augment: What training does at random.
            distortion: What it does beside `crop`.
            pixels: Whether to leave the last step, `normalise`, to whoever takes the tensor.

        Returns:
            A callable from a PIL image to a tensor.

        Raises:
            UnknownName: There is no such augmentation.
            InputError: Pixels are wanted of random erasing, which comes after the last step.
        """
        if augment not in AUGMENTS:
            raise UnknownName("augmentation", augment, AUGMENTS)
        if pixels and distortion.random_erasing:
            raise InputError("random_erasing changes normalised images, and pixels are not")
        distortion.refuse_channels(self.channels)
        return Transform(self, train, augment, distortion, pixels)


@dataclasses.dataclass(frozen=True)
class Transform:
    """A PIL image to a normalised tensor: what is the same every time and may be cached, the rest.

    Attributes:
        preprocessing: What the pre-trained weights want.
        train: Whether to augment.
        augment: How to augment.
        distortion: What else training does, with `crop`.
        pixels: Whether the result is uint8, not normalised.
    """

    preprocessing: Preprocessing
    train: bool
    augment: Augment
    distortion: Distortion = Distortion()
    pixels: bool = False

    @property
    def random(self) -> bool:
        """Whether two calls on one image may differ."""
        return self.train and self.augment != "none"

    @property
    def cacheable(self) -> bool:
        """Whether all resizing is done before the cache, so that what it holds is small."""
        return not (self.train and self.augment == "crop")

    @functools.cached_property
    def before_cache(self) -> Callable[[Image.Image], Any]:
        """The part that is the same every time: uint8 `(C, H, W)` if cacheable, else the image."""
        if not self.cacheable:
            return _same
        made = self.preprocessing
        squeeze = self.augment != "crop"
        return create_transform(
            made.size,
            interpolation=made.interpolation,
            crop_pct=1.0 if squeeze else made.crop_pct,
            crop_mode="squash" if squeeze else made.crop_mode,
            mean=made.mean,
            normalize=False,
        )

    @functools.cached_property
    def after_cache(self) -> Callable[[Any], Tensor]:
        """The rest: whatever is random, then normalisation to `(C, H, W)` float32, if wanted."""
        made = self.preprocessing
        if not self.cacheable:
            return create_transform(
                made.size,
                is_training=True,
                **self.distortion.options(),
                interpolation=made.interpolation,
                mean=made.mean,
                std=made.std,
                normalize=not self.pixels,
            )
        flip = [transforms.RandomHorizontalFlip()] if self.random else []
        return transforms.Compose([*flip, *([] if self.pixels else [made.normalise])])

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform one decoded image.

        Args:
            image: Of mode `RGB`, or `L` where the model takes one channel.

        Returns:
            The model's input, `(C, H, W)`.
        """
        return self.after_cache(self.before_cache(image))


def _same(image: Image.Image) -> Image.Image:
    return image
