"""A deflated DICOM file whose syntax stood behind 70 KB cost 5.8 GB, and a TIFF of 200,000 pages had no answer. Limits
hold on what is inflated and walked, wherever it stands, and foreign bytes are parsed in workers with a time and a
memory."""

import io
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.errors import ImageError
from featcache.images.cache import stamp_of
from featcache.images.workers import Decoders
from featcache.manifest import Manifest
from featcache.manifest.check import check
from featcache.specs import DecodeSpec, TransformSpec
from tests.encoders import DEFLATED, JPEG_BASELINE, chunk, dicom, png, png_header

GRAY = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
DEEP = GRAY.astype(np.uint16) * 16
TINY = TransformSpec((8, 8), 1.0, "bilinear", (0.5,) * 3, (0.2,) * 3)
MOST_BYTES = 450 << 20  # of a worker, which takes 50 MB without pydicom and torch


def deflated(data_set: bytes, n_before: int) -> bytes:
    """A DICOM file whose transfer syntax stands behind so many bytes."""

    def element(number: int, kind: bytes, value: bytes) -> bytes:
        length = b"\0\0" + struct.pack("<I", len(value)) if kind == b"OB" else struct.pack("<H", len(value))
        return b"\x02\0" + struct.pack("<H", number) + kind + length + value

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    meta = element(1, b"OB", bytes(n_before)) + element(16, b"UI", DEFLATED.encode())
    head = bytes(128) + b"DICM" + element(0, b"UL", struct.pack("<I", len(meta))) + meta
    return head + packer.compress(data_set) + packer.flush()


def data_set() -> bytes:
    plain = dicom(DEEP)
    return plain[144 + struct.unpack_from("<I", plain, 140)[0] :]


def private(n: int) -> bytes:
    """A private element of so many zeros."""
    return b"\x09\0\x10\x10OB\0\0" + struct.pack("<I", n) + bytes(n)


def tiff_of(tags: list[tuple[int, int, int, int]], next_offset: int = 0) -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_offset)


TAGS = [(256, 4, 1, 24), (257, 4, 1, 20), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
TAGS += [(277, 3, 1, 1), (278, 4, 1, 20), (279, 4, 1, 480)]
START = b"II*\0" + struct.pack("<I", 488) + GRAY.tobytes()
PAGE = len(tiff_of(TAGS))


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """(name, bytes, what embedding them is answered)."""
    yield "deflated.dcm", deflated(data_set(), 70_000), "ok"
    yield "deflated-bomb-after.dcm", deflated(data_set() + private(600 << 20), 70_000), "too-large"
    yield "deflated-bomb-before.dcm", deflated(b"\x08" + private(600 << 20)[1:] + data_set(), 200_000), "dicom"
    yield "named-elsewhere.dcm", dicom(DEEP, ImageComments=DEFLATED), "dicom"
    fragments = b"\xfe\xff\0\xe0\0\0\0\0" + b"\xfe\xff\0\xe0\2\0\0\0ab" * 100_000 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    whole = dicom(DEEP, syntax=JPEG_BASELINE, codestream=b"\xff\xd8\xff\xd9")
    at = whole.rfind(b"\xe0\x7f\x10\0")
    yield "fragments.dcm", whole[:at] + b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + fragments, "dicom"
    nested = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 100_000
    yield "nested.dcm", dicom(None)[:-60] + nested, "dicom"
    yield "pages.tif", START + b"".join(tiff_of(TAGS, 488 + i * PAGE) for i in range(1, 50_001)), "frames"
    yield "loop.tif", START + tiff_of(TAGS, 488), "ok"
    yield "two-that-loop.tif", START + tiff_of(TAGS, 488 + PAGE) + tiff_of(TAGS, 488), "frames"
    shared = [(50_000 + i, 7, 8 << 20, 488) for i in range(2_000)]
    yield "tags-of-the-same-bytes.tif", START + tiff_of(TAGS + shared) + bytes(8 << 20), "ok"
    strips = [tag for tag in TAGS if tag[0] not in (273, 279)] + [(273, 4, 9**8, 488), (279, 4, 9**8, 488)]
    yield "strips.tif", START + tiff_of(strips), "format"
    yield "bigtiff-of-tags.tif", b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(100), "damaged"
    tiles = [tag for tag in TAGS if tag[0] not in (259, 273, 278, 279)]
    tiles += [(259, 3, 1, 8), (322, 4, 1, 40_000), (323, 4, 1, 40_000), (324, 4, 1, 8), (325, 4, 1, 480)]
    yield "tile.tif", START + tiff_of(tiles), "damaged"
    buffer = io.BytesIO()
    Image.fromarray(GRAY).save(buffer, "GIF")
    gif = buffer.getvalue()
    end = 13 + (3 << (gif[10] & 7) + 1)
    yield "frames.gif", gif[:end] + gif[end:-1] * 5_000 + b";", "frames"
    rows = b"".join(b"\0" + row.tobytes() for row in GRAY)
    pixels = chunk(b"IDAT", zlib.compress(rows + bytes(500 << 20), 9))
    yield "pixels-bomb.png", png_header(24, 20, 8, 0) + pixels + chunk(b"IEND", b""), "ok"
    yield "giant.png", png_header(60_000, 60_000, 8, 0) + chunk(b"IDAT", zlib.compress(bytes(99))), "too-large"
    size = b"".join((n - 1).to_bytes(3, "little") for n in (9_000, 9_000))
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    yield "giant.webp", b"RIFF" + struct.pack("<I", len(webp)) + webp, "too-large"


FILES = {name: (data, answer) for name, data, answer in hostile()}


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders([TINY], DecodeSpec(), None, 60.0) as decoders:
        yield decoders


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_has_its_answer_within_its_time_and_memory(
    name: str, decoders: Decoders, tmp_path: Path
) -> None:
    data, answer = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    started = time.monotonic()
    prepared = decoders.prepare(path, stamp_of(path), ())
    assert ("ok" if prepared.failure is None else prepared.failure[0]) == answer, prepared.failure
    with suppress(ImageError):
        decoders.header(path)
    assert decoders.memory_bytes < MOST_BYTES
    assert time.monotonic() - started < 50


def test_a_file_far_larger_than_its_pixels_is_not_read(tmp_path: Path, decoders: Decoders) -> None:
    (tmp_path / "junk.png").touch()
    (tmp_path / "tail.png").write_bytes(png(GRAY))
    for path in tmp_path.iterdir():
        os.truncate(path, 900 << 20)
    failures = check(Manifest.read(tmp_path)).failures
    assert {name: code for name, (code, _) in failures.items()} == {"junk.png": "format", "tail.png": "too-large"}
    prepared = decoders.prepare(tmp_path / "tail.png", stamp_of(tmp_path / "tail.png"), ())
    assert prepared.failure is not None
    assert prepared.failure[0] == "too-large"
    assert decoders.memory_bytes < MOST_BYTES


def test_a_decoder_that_asks_for_more_memory_than_its_pixels_need_fails_by_its_reason(tmp_path: Path) -> None:
    """The bound is of the system, for what no check of ours foresees."""
    from featcache.images import serving

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            memory = serving._Memory(DecodeSpec().max_pixels)
            memory.allow(0, 100)
            np.ones(1 << 30, dtype=np.uint8)
        except MemoryError:
            code = 7
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
