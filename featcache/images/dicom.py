"""DICOM to 8-bit gray or RGB: the one user of pydicom, which is imported when the first DICOM file comes.

Gray of up to 16 bits goes through one table of at most 65,536 entries, computed in float64: the modality LUT or rescale
slope and intercept, then the first VOI LUT, else the first window, else the full range of the bits stored (DICOM PS3.3
C.11.1 and C.11.2), inverted for MONOCHROME1, rounded once. The rules are ours because pydicom 3.0.2's `apply_voi` wraps
modulo 256 where a LUT of 8-bit entries meets pixels of 12 bits. Which codec reads which transfer syntax is fixed, or
vectors would depend on what else is installed.

Headers hold patient data: no message has anything from them but sizes and technical terms.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from featcache.errors import ImageError
from featcache.images.containers import Buffer

Array = np.ndarray[Any, Any]
Dataset = Any  # pydicom's; a name for readers, as pydicom may be absent
SizeCheck = Callable[[int, int, int], None]  # width, height, most pixels

_PREAMBLE, _MARK = 128, b"DICM"
_HEADLESS = re.compile(rb"[\x02\x08]\0.\0(?:[A-Z]{2}|..\0\0)", re.DOTALL)  # a first element of group 0002 or 0008
_GRAY, _PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_NOT_READ = ("ARGB", "CMYK", "HSV", "YBR_PARTIAL_420", "YBR_PARTIAL_422", "XYB")
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # pydicom would inflate it whole, however large
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")  # PS3.5, 7.1.2
_HEADER_BYTES = 1 << 24  # of a deflated data set, before its pixels
_INFLATED_BYTES = 8  # of a pixel of a frame, at most
_HEADER = ("Columns", "Rows", "PhotometricInterpretation", "BitsStored", "NumberOfFrames")
_INSTALL = "pip install 'featcache[dicom]'"
_J2K_START, _CODESTREAM_END = b"\xff\x4f\xff\x51", b"\xff\xd9"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF0..15, and that of JPEG-LS


def is_dicom(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does: 128 of anything, then DICM (PS3.10, 7.1)."""
    return data[_PREAMBLE : _PREAMBLE + len(_MARK)] == _MARK


def is_headless(data: bytes) -> bool:
    """Whether the bytes look like a DICOM data set without the preamble. A guess: good for a reason, not for pixels."""
    return _HEADLESS.match(data) is not None


def decode(data: bytes, first_frame: bool, max_pixels: int, check_size: SizeCheck) -> Image.Image:
    """A DICOM file's bytes as an 8-bit image of mode L or RGB.

    Args:
        data: bytes for which `is_dicom` holds.
        first_frame: take the first of several frames, instead of refusing them.
        max_pixels: see `check_size`.
        check_size: raises for (columns, rows, max_pixels) that shall not be decoded; called before any pixel is.

    Raises:
        ImageError: `dicom` (pydicom or a codec is missing, no pixels, damaged, a kind that is not read), `frames`, or
            what `check_size` raises.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("dicom", f"DICOM needs pydicom: {_INSTALL}") from error
    try:
        dataset = pydicom.dcmread(io.BytesIO(_inflated(data, first_frame, max_pixels, check_size)))
        _check_syntax(dataset.file_meta.TransferSyntaxUID)
        _check_kind(dataset)
        check_size(int(dataset.Columns), int(dataset.Rows), max_pixels)
        _check_frame_count(int(dataset.get("NumberOfFrames") or 1), first_frame)
        return _image(dataset)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom raises nearly anything on damaged bytes
        # Neither its words nor itself are passed on: it quotes values of the header, which a traceback would show.
        raise ImageError("dicom", f"damaged DICOM ({type(error).__name__})") from None


def header(data: Buffer) -> tuple[int, int, str, int, int]:
    """(width, height, photometric interpretation, bits stored, frames) of a DICOM file, whose pixels are not read.

    Raises:
        ImageError: `dicom`: pydicom is missing, or the data set is damaged or has no picture.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImageError("dicom", f"DICOM needs pydicom: {_INSTALL}") from error
    try:
        if (start := _deflated_at(data)) is not None:
            data = _plain(zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], _HEADER_BYTES))
        file: Any = io.BytesIO(data) if isinstance(data, bytes) else data
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEADER))
        width, height, photometric, bits = (dataset.get(name) for name in _HEADER[:4])
        return int(width), int(height), str(photometric), int(bits), int(dataset.get("NumberOfFrames") or 1)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # as in `decode`
        raise ImageError("dicom", f"damaged DICOM, or one without a picture ({type(error).__name__})") from None


# --- deflated data sets -----------------------------------------------------------------------------------------------


def _inflated(data: bytes, first_frame: bool, max_pixels: int, check_size: SizeCheck) -> bytes:
    """A file whose data set is deflated as one that is not, inflated to what its header has pixels for; any other file
    as it is."""
    if (start := _deflated_at(data)) is None:
        return data
    width, height, _, _, n_frames = header(data)
    check_size(width, height, max_pixels)
    _check_frame_count(n_frames, first_frame)
    most = _HEADER_BYTES + _INFLATED_BYTES * width * height * n_frames
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    dataset = inflater.decompress(data[start:], most + 1)
    if len(dataset) > most:
        raise ImageError("too-large", f"the data set inflates to more than {most:,} bytes, for {width} x {height}")
    if not inflater.eof:
        raise ImageError("dicom", "damaged DICOM: its deflated data set is cut short")
    return _plain(dataset)


def _deflated_at(data: Buffer) -> int | None:
    """Where the deflated data set of a file starts; None of a file that has none.

    Raises:
        ImageError: `dicom`: it names that syntax elsewhere, and pydicom might believe it.
    """
    if data.find(_DEFLATED) < 0:
        return None
    at, syntax = _PREAMBLE + len(_MARK), b""
    while data[at : at + 2] == b"\x02\0":  # the file meta information, explicit and little-endian (PS3.10, 7.1)
        is_long = data[at + 4 : at + 6] in _LONG
        (length,) = struct.unpack_from("<I" if is_long else "<H", data, at + (8 if is_long else 6))
        end = at + (12 if is_long else 8) + length
        if data[at + 2 : at + 4] == b"\x10\0":
            syntax = data[end - length : end]
        at = end
    if syntax.rstrip(b"\0 ") != _DEFLATED:
        raise ImageError("dicom", "damaged DICOM: a deflated transfer syntax that is not where it belongs")
    return at


def _plain(dataset: bytes) -> bytes:
    """A DICOM file of a data set that is explicit, little-endian and not compressed."""
    syntax = b"1.2.840.10008.1.2.1\0"
    element = b"\x02\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
    length = b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(element))
    return bytes(_PREAMBLE) + _MARK + length + element + dataset


# --- what is read -----------------------------------------------------------------------------------------------------


def _check_syntax(syntax: Any) -> None:
    """Whether the transfer syntax can be decoded here."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax_text = syntax if re.fullmatch(r"[\d.]{1,64}", syntax) else "unknown"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError("dicom", f"transfer syntax {syntax_text} is not read") from error
    if (plugin := _plugin(syntax)) and plugin not in decoder.available_plugins:
        raise ImageError("dicom", f"no codec for transfer syntax {syntax_text} ({decoder.UID.name}): {_INSTALL}")


def _plugin(syntax: Any) -> str:
    """The codec of a transfer syntax; empty for pixels that are not compressed."""
    if not syntax.is_encapsulated:
        return ""
    return "pydicom" if syntax == _RLE else "pylibjpeg"


def _check_kind(dataset: Dataset) -> None:
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise ImageError("dicom", "float pixels have no stated range")
    if not dataset.get("PixelData") or not dataset.get("Rows") or not dataset.get("Columns"):
        raise ImageError("dicom", "no pixels: the data set has none, or the file was cut short")
    kind = dataset.get("PhotometricInterpretation", "")
    if kind not in (*_GRAY, _PALETTE, *_COLOUR):
        kind_text = kind if kind in _NOT_READ else "unknown"
        raise ImageError("dicom", f"photometric interpretation {kind_text} is not read")
    if dataset.BitsAllocated > 16:
        raise ImageError("dicom", f"{dataset.BitsAllocated} bits a sample are not read, 16 at most")
    if dataset.get("HighBit", dataset.BitsStored - 1) != dataset.BitsStored - 1:
        raise ImageError("dicom", f"{dataset.BitsStored} bits stored below high bit {dataset.HighBit} are not read")


def _check_frame_count(n_frames: int, first_frame: bool) -> None:
    if n_frames != 1 and not first_frame:
        raise ImageError("frames", f"{n_frames} frames, one is expected; first_frame takes the first")


def _image(dataset: Dataset) -> Image.Image:
    pixels, kind = _first_frame(dataset)
    if pixels.ndim != (2 if kind in (*_GRAY, _PALETTE) else 3):
        raise ImageError("dicom", f"damaged DICOM: {dataset.SamplesPerPixel} samples a pixel are not {kind}")
    if kind in _GRAY:
        unsigned = pixels.astype(pixels.dtype.newbyteorder("="), copy=False).view(f"u{pixels.itemsize}")
        table = np.resize(_gray_table(dataset), 1 << 8 * pixels.itemsize)  # repeated: bits not stored change nothing
        return Image.fromarray(table[unsigned])
    if kind == _PALETTE:
        return _from_palette(pixels, dataset)
    if kind != "RGB":
        raise ImageError("dicom", f"photometric interpretation {kind} is not read")
    return Image.fromarray(pixels if pixels.itemsize == 1 else (pixels >> dataset.BitsStored - 8).astype(np.uint8))


def _first_frame(dataset: Dataset) -> tuple[Array, str]:
    """(rows, columns) or (rows, columns, 3) as stored, YBR as RGB, and their photometric interpretation after that."""
    from pydicom.pixels.decoders.base import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = _plugin(syntax)
    if plugin == "pylibjpeg":
        _check_codestream(dataset)
    as_stored = dataset.BitsStored == dataset.BitsAllocated  # then no copy is made of the bytes of the data set
    options: Any = {"decoding_plugin": plugin, "view_only": as_stored}
    pixels, properties = get_decoder(syntax).as_array(dataset, index=0, **options)
    return pixels, str(properties["photometric_interpretation"])


def _check_codestream(dataset: Dataset) -> None:
    """A compressed frame must have its end mark and the size of the header: codecs would fill up, or decode a bomb."""
    from pydicom.encaps import get_frame

    frame = get_frame(dataset.PixelData, 0, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    if not frame.rstrip(b"\0").endswith(_CODESTREAM_END):
        raise ImageError("dicom", "damaged DICOM: its compressed pixels have no end mark")
    if (size := _codestream_size(frame)) != (dataset.Columns, dataset.Rows):
        raise ImageError(
            "dicom", f"damaged DICOM: {dataset.Columns} x {dataset.Rows} pixels hold {size[0]} x {size[1]}"
        )


def _codestream_size(frame: bytes) -> tuple[int, int]:
    """(width, height) of JPEG 2000 (ITU T.800, A.5.1), JPEG (ITU T.81, B.2.2) or JPEG-LS."""
    if frame.startswith(_J2K_START):
        x, y, x_offset, y_offset = struct.unpack_from(">IIII", frame, 8)
        return x - x_offset, y - y_offset
    at = 2
    while frame[at + 1] not in _JPEG_FRAMES:
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    height, width = struct.unpack_from(">HH", frame, at + 5)
    return width, height


def _from_palette(pixels: Array, dataset: Dataset) -> Image.Image:
    """RGB, or gray where every entry in use is gray, as with any palette."""
    from pydicom.pixels.processing import apply_color_lut

    rgb = apply_color_lut(pixels, dataset)[..., :3]
    image = Image.fromarray((rgb >> 8 * (rgb.itemsize - 1)).astype(np.uint8))
    red, green, blue = (np.asarray(image)[..., channel] for channel in range(3))
    return image.getchannel(0) if np.array_equal(red, green) and np.array_equal(green, blue) else image


# --- gray -------------------------------------------------------------------------------------------------------------


def _gray_table(dataset: Dataset) -> Array:
    """(2 ** bits stored,) uint8: the gray of every stored value, those with a sign in two's complement."""
    n = 1 << dataset.BitsStored
    stored = np.arange(n, dtype=np.float64)
    if dataset.get("PixelRepresentation", 0) == 1:
        stored[n // 2 :] -= n
    values, low, high = _modality(stored, dataset)
    gray = _voi(values, low, high, dataset)  # 0 to 1
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        gray = 1.0 - gray
    # First to 9 decimals: where float64 misses a half by its last bit, the twin of the other photometric
    # interpretation misses it on the other side, and so may another machine's exp().
    return np.round(np.round(255.0 * gray, 9)).astype(np.uint8)


def _modality(stored: Array, dataset: Dataset) -> tuple[Array, float, float]:
    """Stored values as those of the modality, and the least and the greatest that the bits allow (PS3.3 C.11.1)."""
    if luts := dataset.get("ModalityLUTSequence"):
        entries, first, full = _lut(luts[0], signed=bool(stored.min() < 0))
        return _looked_up(stored, entries, first), 0.0, float(full)
    groups = _groups(dataset, "PixelValueTransformationSequence")
    slope, intercept = (_number(groups, name) for name in ("RescaleSlope", "RescaleIntercept"))
    values = stored * (1.0 if slope is None else slope) + (intercept or 0.0)
    low, high = float(values.min()), float(values.max())
    if not low < high < float("inf"):
        raise ImageError("dicom", "damaged DICOM: its rescale slope or intercept is not usable")
    return values, low, high


def _voi(values: Array, low: float, high: float, dataset: Dataset) -> Array:
    """Values of interest from 0 to 1 (PS3.3 C.11.2): a LUT before a window, the first of either, else low to high."""
    if luts := dataset.get("VOILUTSequence"):
        entries, first, full = _lut(luts[0], signed=bool(low < 0))
        return _looked_up(values, entries, first) / full
    groups = _groups(dataset, "FrameVOILUTSequence")
    centre, width = _number(groups, "WindowCenter"), _number(groups, "WindowWidth")
    if centre is None or width is None:
        return (values - low) / (high - low)
    shape = next((group.VOILUTFunction for group in groups if group.get("VOILUTFunction")), "LINEAR")
    return _windowed(values, centre, width, str(shape))


def _windowed(values: Array, centre: float, width: float, shape: str) -> Array:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, scaled from 0 to 1."""
    if not (np.isfinite([centre, width]).all() and width >= (1 if shape == "LINEAR" else 1e-9)):
        raise ImageError("dicom", f"damaged DICOM: a window of width {width:g}")
    if shape == "LINEAR" and width == 1:
        return np.where(values > centre - 0.5, 1.0, 0.0)
    if shape == "LINEAR":
        return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)
    if shape == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if shape == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0)))
    raise ImageError("dicom", "a VOI LUT function other than LINEAR, LINEAR_EXACT and SIGMOID is not read")


def _lut(item: Dataset, signed: bool) -> tuple[Array, int, int]:
    """(n,) entries, the value that the first one stands for, and the greatest entry its bits allow (PS3.3 C.11.1.1)."""
    n, first, bits = (int(value) for value in item.LUTDescriptor)
    n = n & 0xFFFF or 65_536
    first = first - 65_536 if signed and first > 32_767 else first
    data = item.LUTData
    words = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.atleast_1d(data).astype(np.int64) & 0xFFFF
    if bits == 8 and len(words) < n:  # two entries to a word
        words = words.astype("<u2").view(np.uint8)
    if len(words) < n or not 8 <= bits <= 16:
        raise ImageError("dicom", "damaged DICOM: a lookup table that is shorter than it says")
    full = (1 << bits) - 1
    return np.minimum(words[:n], full).astype(np.float64), first, full


def _looked_up(values: Array, entries: Array, first: int) -> Array:
    index = np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.int64)
    looked_up: Array = entries[index]
    return looked_up


def _groups(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Where a value may stand: in the data set, or in the functional groups of its first frame (PS3.3 C.7.6.16)."""
    frames = [*dataset.get("PerFrameFunctionalGroupsSequence", [])[:1]]
    shared = [*dataset.get("SharedFunctionalGroupsSequence", [])[:1]]
    return [dataset, *(item for group in (*frames, *shared) for item in (group.get(keyword) or [])[:1])]


def _number(groups: list[Dataset], name: str) -> float | None:
    """The first value of the first group that has one."""
    for group in groups:
        value = group.get(name)
        if value is None or value == "":
            continue
        return float(value if isinstance(value, (int, float, str)) else value[0])
    return None
