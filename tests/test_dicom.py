"""DICOM: gray by the standard's own formulas, one clear reason for what is not read, nothing of a patient in it."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import ImageError
from featcache.images import decode, dicom
from featcache.specs import DecodeSpec
from tests import encoders, zoo

if not zoo.HAS_DICOM:
    pytest.skip("no codecs: pip install 'featcache[dicom]'", allow_module_level=True)
import pydicom

VALUES = np.array([[0, 255, 256, 300], [511, 512, 1000, 2047], [2048, 2049, 3000, 4095]], np.uint16)


def shown(**elements: object) -> list[list[int]]:
    """VALUES, described by `elements`, as gray."""
    values = elements.pop("values", VALUES)
    return np.asarray(decode(encoders.dicom(values, **elements))).tolist()


def refusal(data: bytes, **rules: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, DecodeSpec(**rules))
    return caught.value


# --- golden values, worked out by hand from PS3.3 C.11 ----------------------------------------------------------------


def test_a_table_of_8_bits_on_pixels_of_12_does_not_wrap() -> None:
    """pydicom's own `apply_voi` takes the index modulo 256 here, as it casts the values to the type of the entries."""
    entries = [min(value, 255) for value in range(512)]
    table = encoders.lut(entries, 0, 8)
    expected = [[0, 255, 255, 255], [255, 255, 255, 255], [255, 255, 255, 255]]
    assert shown(VOILUTSequence=[table]) == expected
    dataset = pydicom.dcmread(io.BytesIO(encoders.dicom(VALUES, VOILUTSequence=[table])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_pydicom = pydicom.pixels.apply_voi(VALUES.copy(), dataset)
    if by_pydicom.tolist() == expected:
        pytest.skip(f"pydicom {pydicom.__version__} has mended it")
    assert by_pydicom.tolist() != expected


def test_windows_have_the_values_of_the_standard() -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert shown(**window) == [[0, 16, 16, 19], [32, 32, 62, 127], [128, 128, 187, 255]]
    assert shown(**window, VOILUTFunction="LINEAR_EXACT") == [[0, 16, 16, 19], [32, 32, 62, 127], [128, 128, 187, 255]]
    assert shown(**window, VOILUTFunction="SIGMOID") == [[30, 38, 38, 39], [46, 47, 67, 127], [128, 128, 183, 225]]
    narrow = {"WindowCenter": 300, "WindowWidth": 100}
    assert shown(**narrow) == [[0, 13, 15, 129], [255] * 4, [255] * 4]


def test_rescaling_comes_before_the_window() -> None:
    ct = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    assert shown(**ct) == [[0, 0, 0, 0], [0, 0, 87, 255], [255] * 4]


def test_the_full_range_is_that_of_the_bits_stored_not_of_the_image() -> None:
    assert shown(values=np.full((3, 4), 1000, np.uint16)) == [[62] * 4] * 3
    assert shown(values=np.full((3, 4), -2048, np.int16)) == [[0] * 4] * 3
    assert shown(values=np.full((3, 4), 2047, np.int16)) == [[255] * 4] * 3


def test_a_signed_table_starts_below_zero() -> None:
    table = encoders.lut([100, 101, 102], -1, 8)
    values = np.array([[-2000, -2, -1], [0, 1, 2000]], np.int16)
    assert shown(values=values, VOILUTSequence=[table]) == [[100, 100, 100], [101, 102, 102]]


def test_a_table_of_65536_entries_says_zero() -> None:
    table = encoders.lut([0], 0, 16)
    table.LUTDescriptor = [0, 0, 16]
    table.LUTData = [65_535 - value for value in range(65_536)]
    values = np.array([[0, 65_535], [257, 25_700]], np.uint16)
    assert shown(values=values, BitsStored=16, HighBit=15, VOILUTSequence=[table]) == [[255, 0], [254, 155]]


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": 1800, "WindowWidth": 1500},
        {"WindowCenter": 1800, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
    ],
)
def test_monochrome1_equals_its_monochrome2_twin(elements: dict[str, object]) -> None:
    """The twin stores every value mirrored, and its window too."""
    every = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    plain = decode(encoders.dicom(every, **elements))
    mirrored = dict(elements)
    if "WindowCenter" in elements:
        shift = 0 if "VOILUTFunction" in elements else 1  # LINEAR has its centre half a value lower
        mirrored["WindowCenter"] = 4095 + shift - elements["WindowCenter"]
    twin = decode(encoders.dicom(4095 - every, PhotometricInterpretation="MONOCHROME1", **mirrored))
    assert np.array_equal(np.asarray(plain), np.asarray(twin))


def test_the_functional_groups_of_the_first_frame_are_found() -> None:
    shared, frame, window, rescale = (pydicom.Dataset() for _ in range(4))
    window.WindowCenter, window.WindowWidth = 300, 100
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, -700
    frame.FrameVOILUTSequence, shared.PixelValueTransformationSequence = [window], [rescale]
    data = encoders.dicom(
        VALUES, NumberOfFrames=2, PixelData=VALUES.tobytes() * 2,
        PerFrameFunctionalGroupsSequence=[frame, pydicom.Dataset()], SharedFunctionalGroupsSequence=[shared],
    )  # fmt: skip
    pixels = np.asarray(decode(data, DecodeSpec(first_frame=True))).tolist()
    assert pixels == [[0] * 4, [0, 0, 129, 255], [255] * 4]


# --- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-pixels", "no pixels: the data set has none, or the file was cut short"),
        ("mpeg", "transfer syntax 1.2.840.10008.1.2.4.100 is not read"),
        ("deflated-cut", "damaged DICOM"),
        (
            "no-preamble",
            "it looks like DICOM without the preamble that says so; rewrite it as a DICOM file (dcmconv",
        ),
        ("frames", "2 frames, one is expected; first_frame takes the first"),
        ("large", "20000 x 20000 is more than 89,478,485 pixels; max_pixels allows it"),
        ("cmyk", "photometric interpretation CMYK is not read"),
        ("jpeg-cut", "damaged DICOM: its compressed pixels have no end mark"),
        ("jpeg-of-other-size", "damaged DICOM: 24 x 40 pixels hold 24 x 20"),
        ("window-of-none", "damaged DICOM: a window of width 0"),
        ("high-bit", "12 bits stored below high bit 15 are not read"),
    ],
)
def test_one_clear_reason_each(name: str, words: str) -> None:
    assert str(refusal(zoo.animals()[f"dicom/{name}.dcm"].data)).startswith(words)


def test_no_value_of_the_header_is_in_a_message() -> None:
    for name, animal in zoo.animals().items():
        if name.startswith("dicom/") and animal.answer != "ok":
            message = str(refusal(animal.data))
            assert "S3CR3T" not in message
            assert "Secret" not in message
    hidden = encoders.dicom(VALUES).replace(b"MONOCHROME2 ", b"Secret Perso")
    assert str(refusal(hidden)) == "photometric interpretation unknown is not read"


def without(modules: str, name: str, tmp_path: Path) -> str:
    """The reason that a process gives in which `modules` cannot be imported."""
    path = tmp_path / "image.dcm"
    path.write_bytes(zoo.animals()[f"dicom/{name}.dcm"].data)
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules.split()!r}))\n"
        "from featcache.images import decode\n"
        "try: decode(open(sys.argv[1], 'rb').read())\n"
        "except Exception as error: print(error.code, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(path)], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_missing_pydicom_or_codec_is_named_with_the_way_out(tmp_path: Path) -> None:
    assert without("pydicom", "plain", tmp_path) == "dicom DICOM needs pydicom: pip install 'featcache[dicom]'"
    assert without("pylibjpeg libjpeg openjpeg", "jpeg-lossless", tmp_path) == (
        "dicom no codec for transfer syntax 1.2.840.10008.1.2.4.70 (JPEG Lossless, Non-Hierarchical, First-Order "
        "Prediction (Process 14 [Selection Value 1])): pip install 'featcache[dicom]'"
    )
    assert without("pylibjpeg libjpeg openjpeg", "plain", tmp_path) == ""


def test_pydicom_is_imported_by_the_first_dicom_file_only() -> None:
    code = (
        "import sys, featcache.images, featcache.manifest, featcache.images.probe\n"
        "assert not {'pydicom', 'torch', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_what_begins_as_dicom_does_is_told_from_what_does_not() -> None:
    whole = encoders.dicom(VALUES)
    assert dicom.is_dicom(whole)
    assert not dicom.is_headless(whole)
    assert dicom.is_headless(whole[132:])
    assert not any(dicom.is_headless(data) for data in zoo._DISGUISED.values())


def test_a_compressed_bomb_is_refused_before_it_is_decoded() -> None:
    """The header says 24 x 20, the codestream 60,000 x 60,000."""
    jpeg = encoders.lossless_jpeg(zoo.R12, 12)
    at = jpeg.index(b"\xff\xc3") + 5
    bomb = jpeg[:at] + b"\xea\x60\xea\x60" + jpeg[at + 4 :]
    data = encoders.dicom(zoo.R12, syntax=encoders.JPEG_LOSSLESS, codestream=bomb)
    assert str(refusal(data)) == "damaged DICOM: 24 x 20 pixels hold 60000 x 60000"
