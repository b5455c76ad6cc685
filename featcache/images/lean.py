"""What a file holds beside its pixels, left out: colour profiles, texts and thumbnails decide about no pixel, whatever
their size and however they are broken.

Metadata can cost more than the picture: a few kilobytes of compressed text inflate to gigabytes, segments are joined
one by one, the tags of a TIFF may all point at the same bytes. So decoders get what makes pixels, the orientation, and
other metadata only in small amounts. Walks stop at the end of the bytes: whether a file is whole, `containers` says.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice

from featcache.errors import ImageError
from featcache.images import containers
from featcache.images.containers import Buffer

MOST_FRAMES = 1_000  # that are counted

_SMALL_BYTES = 1 << 18  # of metadata, up to which they are left where they are
_ORIENTING_BYTES = 1 << 16  # of metadata that may hold the orientation
_ORIENTING_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # keywords of PNG texts that Pillow looks at
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_KEPT = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # beside critical chunks, whose names begin with a capital letter
_JPEG_KEPT = {0xE0: b"", 0xEE: b"Adobe", 0xE2: b"MPF\0"}  # application segments that decoders need
_JPEG_ORIENTING = {0xE1: (b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0")}
_GIF_TEXTS = (0x01, 0xFE, 0xFF)  # plain text, comment, application
_WEBP_TEXTS = (b"ICCP", b"EXIF", b"XMP ")
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_PIXELS = {  # tags that make pixels: TIFF 6.0, sections 3 to 22
    *(256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 330, 332),
    *(338, 339, 347, *range(512, 522), 529, 530, 531, 532),
}
_TIFF_MAGIC = re.compile(rb"II[*+]\0|MM\0[*+]")
_MOST_VALUES = 300_000  # strips of one row in three planes of the highest image are 200,000


def lean(data: bytes) -> bytes:
    """The bytes of an image file without what makes no pixel; the same object where that is little.

    Raises:
        ImageError: `damaged`: a TIFF directory that is no directory of an image.
    """
    try:
        return b"".join(_kept(data, _kind(data))) if _has_much(data) else data
    except (struct.error, IndexError):
        return data


def head(data: Buffer) -> bytes | None:
    """The part of an image file that a decoder needs to say what the image is; None of a format whose head is small.

    Raises:
        ImageError: as `lean`.
    """
    kind = _kind(data)
    if kind not in ("PNG", "JPEG", "GIF", "TIFF"):
        return None
    try:
        return b"".join(_kept(data, kind, is_head=True))
    except (struct.error, IndexError):
        return None


def n_frames(data: Buffer) -> int | None:
    """Frames of a GIF, or pages of a TIFF; not counted beyond `MOST_FRAMES`. None of any other format."""
    counts = {"GIF": _gif_frames, "TIFF": _tiff_pages}
    count, kind = 0, _kind(data)
    if kind not in counts:
        return None
    try:
        for _ in counts[kind](data):
            count += 1
            if count > MOST_FRAMES:
                break
    except (struct.error, IndexError):  # where it ends too early, it is damaged, and no page
        pass
    return max(1, count)


def _kind(data: Buffer) -> str:
    start = data[:16]
    return "TIFF" if _TIFF_MAGIC.match(start) else containers.kind_of(start) or ""


def _has_much(data: bytes) -> bool:
    """Whether there is metadata to be left out; of a PNG any that is compressed or may be."""
    kind = _kind(data)
    if kind == "PNG":
        return any(name in (b"iCCP", b"eXIf", *_PNG_TEXTS) for name, _, _ in containers.png_chunks(data))
    sizes = {"JPEG": _jpeg_metadata, "GIF": _gif_metadata, "WEBP": _webp_metadata, "TIFF": _tiff_metadata}
    return kind in sizes and sum(sizes[kind](data)) > _SMALL_BYTES


def _kept(data: Buffer, kind: str, is_head: bool = False) -> Iterator[bytes]:
    if kind == "TIFF":
        yield from _kept_of_tiff(data, is_head)
    elif kind == "WEBP":
        yield from _kept_of_webp(data)
    else:
        yield from {"PNG": _kept_of_png, "JPEG": _kept_of_jpeg, "GIF": _kept_of_gif}[kind](data, is_head)


# --- PNG --------------------------------------------------------------------------------------------------------------


def _kept_of_png(data: Buffer, is_head: bool) -> Iterator[bytes]:
    yield data[:8]
    for name, start, end in containers.png_chunks(data):
        if is_head and name == b"IDAT":
            yield data[start - 8 : start]
            return
        if _is_kept_of_png(name, data, start, end):
            yield data[start - 8 : end + 4]


def _is_kept_of_png(name: bytes, data: Buffer, start: int, end: int) -> bool:
    if name in _PNG_TEXTS:
        return end - start <= _ORIENTING_BYTES and _is_orienting(name, data[start:end])
    if name == b"eXIf":
        return end - start <= _ORIENTING_BYTES
    return name[:1].isupper() or name in _PNG_KEPT


def _is_orienting(name: bytes, text: bytes) -> bool:
    """Whether a text chunk may hold the orientation, and inflates to little."""
    keyword = next((keyword for keyword in _ORIENTING_TEXTS if text.startswith(keyword)), None)
    if keyword is None:
        return False
    packed = text[len(keyword) + 1 :] if name == b"zTXt" else text[len(keyword) :]
    if name == b"iTXt":
        is_packed, packed = packed[:1] == b"\1", packed[2:].split(b"\0", 2)[-1]
    if name == b"tEXt" or (name == b"iTXt" and not is_packed):
        return True
    try:
        return len(zlib.decompressobj().decompress(packed, 16 * _ORIENTING_BYTES)) < 16 * _ORIENTING_BYTES
    except zlib.error:
        return False


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _jpeg_metadata(data: Buffer) -> Iterator[int]:
    return (end - start for marker, start, end in containers.jpeg_segments(data) if marker >= 0xE0)


def _kept_of_jpeg(data: Buffer, is_head: bool) -> Iterator[bytes]:
    end, oriented = 0, set[bytes]()
    for marker, start, end in containers.jpeg_segments(data):
        text = data[start + 4 : start + 40]
        orienting = next((begin for begin in _JPEG_ORIENTING.get(marker, ()) if text.startswith(begin)), None)
        is_needed = marker < 0xE0 or (marker in _JPEG_KEPT and text.startswith(_JPEG_KEPT[marker]))
        if is_needed or (orienting is not None and orienting not in oriented):
            oriented |= {orienting} if orienting else set()
            yield data[start:end]
    if not is_head:
        yield data[end:]


# --- GIF --------------------------------------------------------------------------------------------------------------


def _gif_metadata(data: Buffer) -> Iterator[int]:
    return (end - start for label, start, end in containers.gif_blocks(data) if label in _GIF_TEXTS)


def _gif_frames(data: Buffer) -> Iterator[int]:
    return (start for label, start, _ in containers.gif_blocks(data) if label == containers.GIF_IMAGE)


def _kept_of_gif(data: Buffer, is_head: bool) -> Iterator[bytes]:
    yield data[: containers.gif_start(data)]
    for label, start, end in containers.gif_blocks(data):
        if label not in _GIF_TEXTS:
            yield data[start:end]
        if is_head and label == containers.GIF_IMAGE:
            break
    yield b";"


# --- WebP -------------------------------------------------------------------------------------------------------------


def _webp_chunks(data: Buffer) -> Iterator[tuple[bytes, int, int]]:
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length + length % 2
        yield name, at, end
        at = end


def _webp_metadata(data: Buffer) -> Iterator[int]:
    return (end - start for name, start, end in _webp_chunks(data) if name in _WEBP_TEXTS)


def _kept_of_webp(data: Buffer) -> Iterator[bytes]:
    chunks = [data[start:end] for name, start, end in _webp_chunks(data) if name not in _WEBP_TEXTS]
    yield b"RIFF" + struct.pack("<I", 4 + sum(map(len, chunks))) + b"WEBP"
    for chunk in chunks:
        is_extended = chunk[:4] == b"VP8X"
        yield chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:] if is_extended else chunk  # flags: profile, EXIF, XMP


def webp_header(data: Buffer) -> tuple[int, int, str, int]:
    """(width, height, mode, frames) of a WebP file, for which Pillow would allocate two canvases (RFC 9649, 2.4).

    Raises:
        ImageError: `damaged`: the first chunk is of no known kind.
        struct.error, IndexError: it is cut short.
    """
    name, at = data[12:16], 20
    if name == b"VP8X":
        width, height = (1 + int.from_bytes(data[start : start + 3], "little") for start in (at + 4, at + 7))
        n_frames = sum(chunk == b"ANMF" for chunk, _, _ in islice(_webp_chunks(data), MOST_FRAMES))
        return width, height, "RGBA" if data[at] & 0x10 else "RGB", max(1, n_frames)
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, at + 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), "RGBA" if bits >> 28 & 1 else "RGB", 1
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, at + 6)
        return width & 0x3FFF, height & 0x3FFF, "RGB", 1
    raise ImageError("damaged", "a WebP file whose first chunk is of no known kind")


# --- TIFF -------------------------------------------------------------------------------------------------------------


def _tiff_tags(data: Buffer) -> list[tuple[int, int, int, int]]:
    """(tag, type, count, where the value lies) of the first directory."""
    tags = []
    for tag, kind, count, at in containers.tiff_entries(data):
        n_bytes, room = _TIFF_SIZES.get(kind, 1) * count, 8 if containers.is_big_tiff(data) else 4
        place = at if n_bytes <= room else struct.unpack_from(containers.tiff_offset(data), data, at)[0]
        tags.append((tag, kind, count, place))
    return tags


def _tiff_metadata(data: Buffer) -> Iterator[int]:
    return (_TIFF_SIZES.get(kind, 1) * n for tag, kind, n, _ in _tiff_tags(data) if tag not in _TIFF_PIXELS)


def _kept_of_tiff(data: Buffer, is_head: bool) -> Iterator[bytes]:
    """The file with one directory more, at its end, of those tags that make pixels; or that directory alone."""
    order, offset = data[:2], containers.tiff_offset(data)
    byte_order, is_big = offset[0], containers.is_big_tiff(data)
    length, room = (16, 8) if is_big else (8, 4)
    body = data[length:] if not is_head else b""
    at = length + len(body)
    values, entries = [bytes(-at % 8)], []
    at += -at % 8
    for tag, kind, count, place in _tiff_tags(data):
        if tag not in _TIFF_PIXELS:
            continue
        if count > _MOST_VALUES and tag != 347:
            raise ImageError("damaged", f"a TIFF whose tag {tag} has {count:,} values")
        value = data[place : place + _TIFF_SIZES.get(kind, 1) * count]
        if len(value) <= room:
            entries.append(struct.pack(f"{byte_order}HH{offset[1]}", tag, kind, count) + value.ljust(room, b"\0"))
            continue
        entries.append(struct.pack(f"{byte_order}HH{offset[1] * 2}", tag, kind, count, at))
        values.append(value + bytes(-len(value) % 8))
        at += len(values[-1])
    yield order + data[2:4] + (data[4:8] if is_big else b"") + struct.pack(offset, at)
    yield body
    yield from values
    yield struct.pack(byte_order + ("Q" if is_big else "H"), len(entries))
    yield from entries
    yield struct.pack(offset, 0)


def _tiff_pages(data: Buffer) -> Iterator[int]:
    """Where directories lie, up to one that was met before."""
    offset, is_big = containers.tiff_offset(data), containers.is_big_tiff(data)
    count, width = ("Q", 20) if is_big else ("H", 12)
    (at,), visited = struct.unpack_from(offset, data, 8 if is_big else 4), set[int]()
    while at and at not in visited:
        visited.add(at)
        (n,) = struct.unpack_from(offset[0] + count, data, at)
        yield at
        (at,) = struct.unpack_from(offset, data, at + struct.calcsize(count) + n * width)
