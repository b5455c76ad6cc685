"""Bytes to pixels: which files are accepted, how they become 8-bit gray or RGB, and the resize and crop of a backbone.

The result of `TransformSpec` equals timm's own evaluation transform bit for bit (`tests/test_images.py`), with one
liberty that changes no value: a grayscale image is resized in one channel and repeated afterwards, which saves a third
of the time on large X-rays. `DecodeSpec.fast` takes shortcuts that do change values, and says so in the identity.
Normalisation happens later, on the device. Knows nothing of networks; needs no torch.

    containers  is an image file whole?
    lean        what a file holds beside its pixels, left out
    dicom       DICOM to gray or RGB: the only user of pydicom
    files       an image file as bytes
    depths      what a decoder made of a file, in 8 bits
    decoding    a file's bytes to an 8-bit image
    headers     what a file says of itself before it is decoded
    augment     views of an image, each by parameters that anyone can compute again
    probe       what the installed libraries make of a few images
    cache       what the last pass saw, so that it need not be looked at again
    serving     a worker's end of decoding, within a bound of memory
    workers     decoding in processes that may die
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
