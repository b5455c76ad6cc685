"""How files become pixels: the rules of decoding, and the resize, crop and normalisation of a backbone.

Pillow and numpy are imported when a transform is applied. Nothing here opens a file.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from featcache.errors import ImageError, InvalidParameter
from featcache.specs.bounds import check_choice, check_number

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image, Resampling

    from featcache.identity import Json

    Array = np.ndarray[Any, Any]

MAX_PIXELS = 89_478_485  # Pillow's own warning level (1 GiB of RGB / 4 / 3), here an error
MARGIN = 2  # fast: the shorter side is decoded at no less than this many times what it is resized to
REDUCING_GAP = 2.0  # fast: boxes are averaged until this many times the result is left, which is then resampled
_MOST_FLOAT = 1e30
_MOST_RESIZED = 16_384
CROP_MODES = ("center", "squash")

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
_DICOM = {
    "codec": "pylibjpeg for JPEG, JPEG-LS and JPEG 2000, pydicom for RLE",
    "modality": "lut, else rescale slope and intercept",
    "voi": "first lut, else first window, else the full range of the bits stored",
    "monochrome1": "inverted before rounding",
    "padding": "as any other value",
    "colour": "to rgb; of more than 8 bits the high 8",
    "overlays": "not drawn",
}
_GRAY16 = "scaled to 8 bit, rounded"
_DEPTH = re.compile(rf"(\d+) bit; {_GRAY16}")
_SHORTCUTS = (
    f"jpeg in gray or rgb at 1/2, 1/4 or 1/8 while its shorter side stays at least {MARGIN} times what it is resized "
    f"to; resized with a reducing gap of {REDUCING_GAP}"
)


@dataclass(frozen=True)
class DecodeSpec:
    """How files become 8-bit gray or RGB: a part of the identity.

    Attributes:
        bit_depth: Bits of gray stored in more than 8 bits, 8 to 16, the same for every file. A pass settles it for its
            whole set; None takes for one image 12 bits where its greatest value is below 4096, and 16 otherwise.
        float_range: Range of float pixels that becomes 0 to 255, as in 0,1. Values outside are clipped. None refuses
            float pixels: nothing in the file says what is black.
        first_frame: Take the first frame of an animation, a multi-page TIFF or a multi-frame DICOM file.
        max_pixels: Largest number of pixels of an image; larger ones fail before they are decoded.
        fast: Decode and resize with shortcuts that change pixels a little. A JPEG is decoded at 1/2, 1/4 or 1/8 of its
            size where twice what is needed remains, and what shrinks to a quarter or less is averaged in boxes before
            it is resampled. Where the size of a JPEG does not divide, its right and lower edge move by less than half a
            pixel of the result.
        is_settled: Refuse gray of more than 8 bits without a `bit_depth`, instead of guessing from one image.
    """

    bit_depth: int | None = None
    float_range: tuple[float, float] | None = None
    first_frame: bool = False
    max_pixels: int = MAX_PIXELS
    fast: bool = False
    is_settled: bool = False

    def __post_init__(self) -> None:
        if self.bit_depth is not None:
            check_number("bit_depth", self.bit_depth, 8, 16, whole=True)
        if self.float_range is not None:
            for value in self.float_range:
                check_number("float_range", value, -_MOST_FLOAT, _MOST_FLOAT)
            if len(self.float_range) != 2:
                raise InvalidParameter(f"`float_range` must be two values, got {self.float_range}.")
            if self.float_range[0] >= self.float_range[1]:
                raise InvalidParameter(f"`float_range` must be low < high, got {self.float_range}.")
        check_number("max_pixels", self.max_pixels, 1, 1 << 30, whole=True, why="of more, one image takes 10 GB")

    @classmethod
    def of_identity(cls, rules: "Json") -> Self:
        """The spec by which files became pixels, from the rules of an identity.

        Raises:
            LookupError, TypeError, ValueError: they are not such rules.
        """
        depth = _DEPTH.fullmatch(rules["gray16"] or "")
        return cls(
            bit_depth=int(depth[1]) if depth else None,
            float_range=tuple(rules["float"]) if isinstance(rules["float"], list) else None,
            fast="shortcuts" in rules,
            is_settled=True,
        )

    def identity(self) -> dict[str, Any]:
        """The rules as JSON. A change here is a change of every vector.

        `first_frame` and `max_pixels` are not among them: they decide whether an image has a vector, never which.
        `gray16` is null as long as no vector depends on it: it is settled with the first set that has such images.
        `shortcuts` is there only where they are taken.
        """
        rules = {
            "decoder": "pillow",
            "orientation": "exif applied",
            "alpha": "composited on black",
            "palette": "to rgb, or gray where every entry in use is gray",
            "cmyk": "pillow conversion, no colour profile",
            "white_is_zero": "inverted",
            "gray16": None if self.bit_depth is None else f"{self.bit_depth} bit; {_GRAY16}",
            "colour16": "the high byte; refused where no value reaches 4096",
            "float": "refused" if self.float_range is None else [float(value) for value in self.float_range],
            "frames": "one, the first",
            "dicom": dict(_DICOM),
        }
        return {**rules, "shortcuts": _SHORTCUTS} if self.fast else rules


def check_input_size(value: int) -> None:
    """Raises ValueError for what is no side of an image that a network takes."""
    check_number("input_size", value, 1, 4096, whole=True)


def check_crop_pct(value: float) -> None:
    """Raises ValueError for what is no share of an image."""
    check_number("crop_pct", value, 0.01, 1.0)


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises ValueError for what leaves nothing of pixels from 0 to 1."""
    for value in mean:
        check_number("mean", value, -10, 10, why="pixels are from 0 to 1")
    for value in std:
        check_number("std", value, 1e-4, 100, why="pixels are from 0 to 1")


@dataclass(frozen=True)
class TransformSpec:
    """Resize, crop and normalisation: a callable from a decoded image to pixels, and a part of the identity.

    Attributes:
        input_size: (height, width) of the result, in pixels.
        crop_pct: the shorter side is resized to floor(input_size / crop_pct), then the centre is cropped.
        crop_mode: "center" keeps the aspect ratio, "squash" does not.
        interpolation: nearest, bilinear, bicubic or lanczos, antialiased, as Pillow does it.
        mean, std: per channel (red, green, blue), on a scale from 0 to 1.
    """

    input_size: tuple[int, int]
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if len(self.input_size) != 2:
            raise InvalidParameter(f"`input_size` must be (height, width), got {self.input_size}.")
        for side in self.input_size:
            check_input_size(side)
        check_crop_pct(self.crop_pct)
        if max(self.input_size) / self.crop_pct > _MOST_RESIZED:
            raise InvalidParameter(
                f"`input_size` / `crop_pct` must be at most {_MOST_RESIZED} pixels, to which images are resized, got "
                f"{max(self.input_size) / self.crop_pct:.0f}."
            )
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("crop_mode", self.crop_mode, CROP_MODES)
        if len(self.mean) != 3 or len(self.std) != 3:
            raise InvalidParameter(f"`mean` and `std` must be three finite values, got {self.mean} and {self.std}.")
        check_normalisation(self.mean, self.std)
        if self.crop_mode == "center" and self.input_size[0] != self.input_size[1]:
            raise InvalidParameter(
                f"`crop_mode`=center needs a square `input_size`, got {self.input_size}; use squash."
            )

    def identity(self) -> "Json":
        """The fields as JSON; those of `DecodeSpec` stand beside them in an identity."""
        return {**asdict(self), "input_size": list(self.input_size), "mean": list(self.mean), "std": list(self.std)}

    @property
    def shorter_side(self) -> int:
        """Pixels that the shorter side of an image is resized to; under squash, the longer side of the result."""
        return max(self.resized_size)

    def __call__(self, image: "Image", fast: bool = False) -> "Array":
        """(h, w) uint8 for mode L, (h, w, 3) for RGB: resized and cropped."""
        import numpy as np

        return np.asarray(self.crop(self.resize(image, fast)))

    def resize(self, image: "Image", fast: bool = False) -> "Image":
        """The whole image at the scale of the result, not cropped: no side is shorter than the crop.

        What has been resized stays as it is.

        Args:
            image: an image of mode L or RGB.
            fast: average boxes before resampling, see `DecodeSpec`; changes nothing unless a side shrinks to a quarter
                or less.

        Raises:
            ImageError: `too-large`: a thin image would be enormous once enlarged.
        """
        height, width = self.resized_size
        if self.crop_mode == "center":
            shorter, longer = sorted(image.size)
            stretched = int(height * longer / shorter)
            width, height = (height, stretched) if image.width <= image.height else (stretched, height)
        if (width, height) == image.size:
            return image
        if width * height > MAX_PIXELS:
            raise ImageError("too-large", f"resized it would be {width} x {height}, more than {MAX_PIXELS:,} pixels")
        gap = REDUCING_GAP if fast else None
        return image.resize((width, height), _resampling(self.interpolation), reducing_gap=gap)

    def crop(self, image: "Image") -> "Image":
        """The centre of a resized image, in input_size, rounded as torchvision's CenterCrop does it."""
        height, width = self.input_size
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def zoom(self, image: "Image", side: float, top: float, left: float) -> "Image":
        """A part of a resized image, enlarged to input_size.

        Args:
            image: as `resize` makes it.
            side: side of the part, above 0 to 1, as a share of the largest crop with the aspect ratio of the result.
            top, left: where it lies, 0 to 1 of the room there is.
        """
        height, width = self.input_size
        scale = side * min(image.height / height, image.width / width)
        x, y = left * (image.width - scale * width), top * (image.height - scale * height)
        box = (x, y, min(x + scale * width, image.width), min(y + scale * height, image.height))
        return image.resize((width, height), _resampling(self.interpolation), box=box)

    @property
    def resized_size(self) -> tuple[int, int]:
        """(height, width) before the crop, of an image with the aspect ratio of the result."""
        height, width = (math.floor(side / self.crop_pct) for side in self.input_size)
        return height, width


def _resampling(interpolation: str) -> "Resampling":
    from PIL import Image

    return Image.Resampling[interpolation.upper()]
