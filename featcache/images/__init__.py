"""Decodes image files to 8-bit grayscale or RGB, and applies the resize and crop of a backbone.

The result of `TransformSpec` equals timm's own evaluation transform bit for bit (`tests/test_images.py`), except that
a grayscale image is resized in one channel and repeated afterwards, which changes no value and saves a third of the
time on large X-rays. `DecodeSpec.fast` takes shortcuts that change values and are part of the identity. Normalisation
happens later, on the device. Needs no torch.

    containers  whether an image file is complete
    lean        skips metadata beside the pixels
    dicom       DICOM to gray or RGB: the only user of pydicom
    files       reads an image file
    depths      converts decoded images to 8 bits
    decoding    decodes the bytes of a file
    headers     reads headers without decoding
    augment     augmented copies, from reproducible parameters
    probe       a digest of what the installed libraries decode
    cache       caches file stamps and digests of the last pass
    serving     the decoding side of a worker process
    workers     decodes in worker processes that may crash
"""

from featcache.images.decoding import FORMATS, check_size, decode, decode_each, from_pillow, look, pixels, undisturbed
from featcache.images.depths import Look
from featcache.images.files import Stamp, opened, read, stamp

__all__ = [
    "FORMATS",
    "Look",
    "Stamp",
    "check_size",
    "decode",
    "decode_each",
    "from_pillow",
    "look",
    "opened",
    "pixels",
    "read",
    "stamp",
    "undisturbed",
]
