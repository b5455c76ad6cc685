"""Files written byte by byte: PNG, TIFF, lossless JPEG and DICOM of every kind, by code that shares nothing with ours.

`python -m tests.zoo DIR` writes a folder of them.
"""

import io
import struct
import warnings
import zlib

import numpy as np

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of PNG
EXPLICIT, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
JPEG_BASELINE, JPEG_LOSSLESS, JPEG_2000, RLE = (f"1.2.840.10008.1.2.{end}" for end in ("4.50", "4.70", "4.90", "5"))
MPEG2, DEFLATED = "1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.1.99"


# --- PNG --------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, bits: int, colour: int, interlaced: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))


def png(pixels: np.ndarray, colour: int = GRAY, bits: int = 8, before: bytes = b"", interlaced: bool = False) -> bytes:
    """(h, w) or (h, w, c) of values below 2**bits; `before` is put before the pixels."""
    parts = _adam7(pixels) if interlaced else [pixels]
    raw = b"".join(b"\0" + _row(row, bits) for part in parts for row in part)
    header = png_header(pixels.shape[1], pixels.shape[0], bits, colour, int(interlaced))
    return header + before + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def _row(row: np.ndarray, bits: int) -> bytes:
    if bits >= 8:
        return row.astype(">u2" if bits == 16 else "u1").tobytes()
    return np.packbits(np.unpackbits(row.astype("u1").reshape(-1, 1), axis=1)[:, 8 - bits :]).tobytes()


def _adam7(pixels: np.ndarray) -> list[np.ndarray]:
    starts_and_steps = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    return [pixels[y::dy, x::dx] for y, x, dy, dx in starts_and_steps]


# --- TIFF -------------------------------------------------------------------------------------------------------------

PACKBITS, DEFLATE = 32773, 8


def tiff(
    pixels: np.ndarray,
    *,
    order: str = "<",
    bits: int = 8,
    photometric: int | None = 1,
    sample_format: int | None = None,
    compression: int = 1,
    planar: bool = False,
    tags: tuple[tuple[int, int, tuple[int, ...]], ...] = (),
    tile: int | None = None,
) -> bytes:
    """One page, one strip (or one a plane, or tiles), directory first. Tags: (tag, 3 short or 4 long, values)."""
    height, width = pixels.shape[:2]
    n = pixels.shape[2] if pixels.ndim == 3 else 1
    pieces = _pieces(pixels, planar, tile)
    data = [_packed(piece.astype(piece.dtype.newbyteorder(order)), bits, compression) for piece in pieces]
    entries = [(256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits,) * n), (259, 3, (compression,)), (277, 3, (n,))]
    entries += [(262, 3, (photometric,))] if photometric is not None else []
    entries += [(339, 3, (sample_format,) * n)] if sample_format else []
    entries += [(284, 3, (2,))] if planar else []
    entries += [(322, 4, (tile,)), (323, 4, (tile,))] if tile else [(278, 4, (height,))]
    places, counts = (324, 325) if tile else (273, 279)
    entries += [(places, 4, (0,) * len(data)), (counts, 4, tuple(map(len, data))), *tags]
    return _assembled(sorted(entries), data, places, order)


def _pieces(pixels: np.ndarray, planar: bool, tile: int | None) -> list[np.ndarray]:
    if planar:
        return [pixels[..., channel] for channel in range(pixels.shape[2])]
    if tile is None:
        return [pixels]
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, -height % tile), (0, -width % tile)))
    return [padded[y : y + tile, x : x + tile] for y in range(0, height, tile) for x in range(0, width, tile)]


def _packed(piece: np.ndarray, bits: int, compression: int) -> bytes:
    raw = piece.tobytes() if bits >= 8 and bits != 12 else b"".join(_bits(row, bits) for row in piece)
    if compression == DEFLATE:
        return zlib.compress(raw)
    if compression == PACKBITS:  # each row in literal runs
        width = len(raw) // len(piece)
        rows = [raw[i : i + width] for i in range(0, len(raw), width)]
        return b"".join(
            bytes([len(row[i : i + 128]) - 1]) + row[i : i + 128] for row in rows for i in range(0, width, 128)
        )
    return raw


def _bits(row: np.ndarray, bits: int) -> bytes:
    return np.packbits(np.unpackbits(row.astype(">u2").reshape(-1, 1).view("u1"), axis=1)[:, 16 - bits :]).tobytes()


def _assembled(entries: list, data: list[bytes], places: int, order: str) -> bytes:
    size, letter = {3: 2, 4: 4}, {3: "H", 4: "I"}
    end = 8 + 2 + 12 * len(entries) + 4
    long = sum(len(values) * size[kind] for _, kind, values in entries if len(values) * size[kind] > 4)
    starts = [end + long + sum(map(len, data[:i])) for i in range(len(data))]
    directory, extra = b"", b""
    for tag, kind, values in entries:
        packed = struct.pack(f"{order}{len(values)}{letter[kind]}", *(starts if tag == places else values))
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack(order + "I", end + len(extra))
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "IH", 8, len(entries)) + directory + struct.pack(order + "I", 0)
    return head + extra + b"".join(data)


# --- lossless JPEG ----------------------------------------------------------------------------------------------------


def lossless_jpeg(pixels: np.ndarray, bits: int) -> bytes:
    """(h, w) as process 14, selection value 1 (ITU T.81, annex H): 17 categories, each with a code of 5 bits."""
    values = pixels.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << bits - 1
    coded = "".join(map(_difference, (values - predicted).reshape(-1).tolist()))
    coded += "1" * (-len(coded) % 8)
    scan = int(coded, 2).to_bytes(len(coded) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = pixels.shape
    frame = b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, bits, height, width, 1, 1, 0x11, 0)
    table = b"\xff\xc4" + struct.pack(">HB", 36, 0) + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    start = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8" + frame + table + start + scan + b"\xff\xd9"


def _difference(value: int) -> str:
    category = abs(value).bit_length()
    code = f"{category:05b}"
    return code if category == 0 else code + f"{value if value > 0 else value + (1 << category) - 1:0{category}b}"


# --- DICOM ------------------------------------------------------------------------------------------------------------


def dicom(
    pixels: np.ndarray | None,
    *,
    syntax: str = EXPLICIT,
    codestream: bytes | list[bytes] | None = None,
    **elements: object,
) -> bytes:
    """A DICOM file of (h, w) or (h, w, 3) pixels, 12 bits stored unless they are bytes; `elements` by keyword."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    dataset, dataset.file_meta = Dataset(), FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.PatientName, dataset.PatientID = "Secret^Person", "S3CR3T"
    if pixels is not None:
        _describe(dataset, pixels)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
        if value is None:
            delattr(dataset, keyword)
    if codestream is not None:
        dataset.PixelData = encapsulate([codestream] if isinstance(codestream, bytes) else codestream)
    elif pixels is not None and "PixelData" not in elements:
        dataset.PixelData = _native(pixels, syntax)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if codestream is not None or dataset.BitsAllocated == 8 else "OW"
    return _written(dataset)


def _describe(dataset: object, pixels: np.ndarray) -> None:
    wide = pixels.dtype.itemsize > 1
    described = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if pixels.shape[2:] == (3,) else 1,
        "BitsAllocated": 16 if wide else 8,
        "BitsStored": 12 if wide else 8,
        "HighBit": 11 if wide else 7,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PhotometricInterpretation": "RGB" if pixels.shape[2:] == (3,) else "MONOCHROME2",
    }
    if described["SamplesPerPixel"] == 3:
        described["PlanarConfiguration"] = 0
    for keyword, value in described.items():
        setattr(dataset, keyword, value)


def _native(pixels: np.ndarray, syntax: str) -> bytes:
    data = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == BIG_ENDIAN else "<")).tobytes()
    return data + b"\0" * (len(data) % 2)


def _written(dataset: object) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these files are meant to be wrong
        dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def lut(entries: list[int] | bytes, first: int, bits: int, explanation: str = "") -> object:
    """An item of a modality or VOI LUT sequence; `bytes` hold two entries of 8 bits to a word."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    if isinstance(entries, bytes):
        item.add_new("LUTData", "OW", entries)
    else:
        item.add_new("LUTData", "US", entries)
    return item
