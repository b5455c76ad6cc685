"""Is a file whole? The frames of PNG, JPEG, GIF and TIFF walked from the first byte to the end mark.

A decoder stops once it has its pixels. It does not miss the end of a file that was cut short, and most look at no
checksum of what they need not: Pillow alone takes a JPEG whose second half is zeros, a PNG without its last four bytes
and a GIF without its last two. BMP and WebP state their length, which Pillow checks. Knows nothing of pixels. What
follows the end mark is nobody's business and accepted.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from mmap import mmap

from featcache.errors import ImageError

Buffer = bytes | mmap  # of a file

_MOST_TAGS = 4_096  # of a TIFF directory
_PNG_START, _GIF_START = 8, 13
_PNG_PALETTE = 3  # the colour type
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # x y dx dy
_INFLATE_BYTES = 1 << 20
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")  # neither a stuffed FF00 nor a restart
_JPEG_ALONE, _JPEG_SCAN, _JPEG_END = (0x01, 0xD8), 0xDA, b"\xff\xd9"
_GIF_EXTENSION, GIF_IMAGE, _GIF_END = 0x21, 0x2C, 0x3B
_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")
_TIFF_INTEGERS = {3: "H", 4: "I"}
_PHOTOMETRIC, _WHITE_IS_ZERO, _BLACK_IS_ZERO = 262, 0, 1  # TIFF 6.0, section 4


def check_whole(kind: str | None, data: bytes) -> None:
    """Walks a file of Pillow's format `kind`.

    Raises:
        ImageError: `damaged`: cut short, or a checksum does not fit.
    """
    walk = {"PNG": _walk_png, "JPEG": _walk_jpeg, "MPO": _walk_jpeg, "GIF": _walk_gif, "TIFF": _walk_tiff}.get(
        str(kind)
    )
    try:
        if walk is not None:
            walk(data)
    except (struct.error, IndexError) as error:
        raise ImageError("damaged", f"cut short: the {kind} file ends before its end mark") from error


def kind_of(data: bytes) -> str | None:
    """The format that the first bytes promise, where they are callbacks."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    starts = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "GIF": b"GIF8"}
    return next((kind for kind, start in starts.items() if data.startswith(start)), None)


def check_png_rows(data: bytes) -> None:
    """Raises ImageError (`damaged`) unless the pixels of a whole PNG inflate to all of its rows.

    Pillow takes compressed data that ends early, properly, for an image whose other rows are zero.
    """
    inflate, n, n_expected = zlib.decompressobj(), 0, _png_bytes(data)
    for kind, start, end in png_chunks(data):
        rest = data[start:end] if kind == b"IDAT" else b""
        while rest and n < n_expected:
            n += len(inflate.decompress(rest, _INFLATE_BYTES))
            rest = inflate.unconsumed_tail
    if n < n_expected:
        raise ImageError("damaged", "the pixels of the PNG end before its last row")


def _png_bytes(data: bytes) -> int:
    """Of all rows, with the filter byte of each, of one pass or the seven of Adam7."""
    width, height, bits, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    n_bits = bits * _PNG_CHANNELS[colour]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
    return sum(rows * (1 + (columns * n_bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


def black_is_zero(data: bytes) -> tuple[bytes, bool]:
    """A TIFF that declares 0 as white, declared as if 0 were black, and whether that was done: whoever calls inverts.

    Pillow inverts some depths, leaves others as they are and refuses the rest (big-endian 16 bit, 32 bit); this way
    there is one rule for all.
    """
    photometric = _photometric(data) if _TIFF.match(data) else None
    if photometric is None or struct.unpack_from(photometric[0], data, photometric[1])[0] != _WHITE_IS_ZERO:
        return data, False
    patched = bytearray(data)
    struct.pack_into(photometric[0], patched, photometric[1], _BLACK_IS_ZERO)
    return bytes(patched), True


def _walk_png(data: bytes) -> None:
    """Every chunk and its checksum (PNG 3rd edition, 5.3); decoding looks at few of them."""
    view, chunk_kinds = memoryview(data), set()
    for kind, start, end in png_chunks(data):
        if zlib.crc32(view[start - 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ImageError("damaged", "the checksum of a PNG chunk does not fit its bytes")
        chunk_kinds.add(kind)
    if data[25] == _PNG_PALETTE and b"PLTE" not in chunk_kinds:
        raise ImageError("damaged", "a PNG of palette indexes without a palette")


def png_chunks(data: Buffer) -> Iterator[tuple[bytes, int, int]]:
    """(kind, where its data starts, where they end), up to the end mark."""
    at, kind = _PNG_START, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def _walk_jpeg(data: bytes) -> None:
    """Segments to the first scan; then to the end mark, which no scan can hold."""
    *_, (_, _, end) = jpeg_segments(data)
    if data.rfind(_JPEG_END, end) < 0:  # from the end, where it is
        raise ImageError("damaged", "cut short: the JPEG file has no end mark")


def jpeg_segments(data: Buffer) -> Iterator[tuple[int, int, int]]:
    """(marker, where it starts, where its segment ends), to the first scan and with it (ITU T.81, B.1).

    Raises:
        ImageError: `damaged`: there is no scan.
        struct.error: a segment is cut short.
    """
    at, kind = 0, 0
    while kind != _JPEG_SCAN:
        marker = _JPEG_MARKER.search(data, at)
        if marker is None or marker[1][0] == _JPEG_END[1]:
            raise ImageError("damaged", "a JPEG file without a scan")
        kind, at = marker[1][0], marker.end()
        if kind not in _JPEG_ALONE:
            at += struct.unpack_from(">H", data, at)[0]
        yield kind, marker.start(), at


def _walk_gif(data: bytes) -> None:
    """Blocks up to the trailer."""
    for _ in gif_blocks(data):
        pass


def gif_start(data: Buffer) -> int:
    """Where the first block of a GIF lies, behind the global colour table."""
    return _GIF_START + _colours(data[10])


def gif_blocks(data: Buffer) -> Iterator[tuple[int, int, int]]:
    """(label of the extension, or `GIF_IMAGE`; where the block starts; where it ends), up to the trailer (GIF89a,
    appendix B).

    Raises:
        ImageError: `damaged`.
    """
    at = gif_start(data)
    while data[at] != _GIF_END:
        start, label = at, data[at]
        if label == _GIF_EXTENSION:
            label = data[at + 1]
            at += 2
        elif label == GIF_IMAGE:
            at += 11 + _colours(data[at + 9])
        else:
            raise ImageError("damaged", "a GIF block of no known kind")
        while data[at]:
            at += 1 + data[at]
        at += 1
        yield label, start, at


def _colours(flags: int) -> int:
    """Bytes of the colour table that a GIF's flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _walk_tiff(data: bytes) -> None:
    """The first directory, with the offset behind it; Pillow warns of its end and goes on."""
    if _photometric(data) is None:
        raise ImageError("damaged", "a TIFF that does not say whether 0 is black")


def _photometric(data: bytes) -> tuple[str, int] | None:
    """The struct format and offset of a TIFF's photometric interpretation."""
    try:
        for tag, kind, n, at in list(tiff_entries(data)):
            if tag == _PHOTOMETRIC and n == 1 and kind in _TIFF_INTEGERS:
                return tiff_offset(data)[0] + _TIFF_INTEGERS[kind], at
    except struct.error as error:
        raise ImageError("damaged", "cut short: the TIFF directory is not within the file") from error
    return None


def is_big_tiff(data: Buffer) -> bool:
    """Whether a TIFF is a BigTIFF."""
    return b"+" in data[2:4]


def tiff_offset(data: Buffer) -> str:
    """The struct format of an offset in a TIFF: its byte order, and how wide it is."""
    return ("<" if data[:2] == b"II" else ">") + ("Q" if is_big_tiff(data) else "I")


def tiff_entries(data: Buffer, most: int = _MOST_TAGS) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, offset of the value) of the first directory of a TIFF or BigTIFF; an offset ends it.

    Raises:
        ImageError: `damaged`: more than `most` tags.
        struct.error: it is not within the file.
    """
    offset, is_big = tiff_offset(data), is_big_tiff(data)
    count, width = ("Q", 20) if is_big else ("H", 12)
    (at,) = struct.unpack_from(offset, data, 8 if is_big else 4)
    (n,) = struct.unpack_from(offset[0] + count, data, at)
    at += struct.calcsize(count)
    if n > most:
        raise ImageError("damaged", f"a TIFF directory of {n:,} tags")
    struct.unpack_from(offset, data, at + n * width)
    for start in range(at, at + n * width, width):
        tag, kind, length = struct.unpack_from(f"{offset[0]}HH{offset[1]}", data, start)
        yield tag, kind, length, start + (12 if is_big else 8)
