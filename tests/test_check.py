"""What is said of images before anything is embedded: everything that is wrong, and nothing that is not."""

import io
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from featcache.cli.collections import print_checked
from featcache.errors import ImageError
from featcache.images import headers
from featcache.manifest import Manifest
from featcache.manifest.check import Checked, check
from featcache.specs import DecodeSpec
from tests.conftest import KERMANY_GROUPS, draw, shared
from tests.encoders import dicom
from tests.test_cli import featcache

HOSTILE = "<img src=x onerror=alert(1)>\n[red]=cmd.png"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of two classes and two sides: one patient and one image on both sides, one image twice on one with
    another label, three files that are no images, and one that is cut short. Never to be changed."""
    root = tmp_path_factory.mktemp("check") / "images"
    for i in range(14):
        side, label = ("train", "test")[i % 3 == 2], ("normal", "sick")[i % 2]
        draw(root / side / label / f"p{i}-0.png", i, size=(40 + i % 2, 36))
    draw(root / "test" / "sick" / "p1-1.jpg", 50, size=(60, 50), mode="RGB")  # patient 1 is in train
    shutil.copy(root / "train" / "normal" / "p0-0.png", root / "test" / "normal" / "p20-0.png")
    shutil.copy(root / "train" / "normal" / "p6-0.png", root / "train" / "sick" / "p21-0.png")
    (root / "train" / "normal" / "p22-0.png").write_bytes(b"not an image")
    (root / "train" / "normal" / "p23-0.png").write_bytes(b"")
    whole = (root / "train" / "sick" / "p1-0.png").read_bytes()
    (root / "train" / "sick" / "p24-0.png").write_bytes(whole[:-30])
    (root / "train" / "sick" / HOSTILE).write_bytes(b"neither")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(root / "train" / "sick" / "p25-0.png")
    return root


def looked(tree: Path, **options: object) -> Checked:
    return check(Manifest.read(tree, r"/(p\d+)-"), **options)


def test_every_image_is_counted_once_by_class_and_side(tree: Path) -> None:
    found = looked(tree)
    assert found.n_images == sum(each.n_images for each in found.strata) == 22
    assert [(each.split, each.label, each.n_images, each.n_groups) for each in found.strata] == [
        ("train", "normal", 7, 7), ("train", "sick", 9, 9), ("test", "normal", 3, 3), ("test", "sick", 3, 3),
    ]  # fmt: skip
    assert sum(found.sizes.values()) == 22 - len(found.failures)


def test_formats_depths_and_sizes_are_those_of_the_headers(tree: Path) -> None:
    sick = looked(tree).strata[1]
    assert sick.formats == {"PNG": 8}
    assert sick.bits == {"8": 7, "16": 1}
    assert (sick.widths, sick.heights) == ([40, 41, 41], [36, 36, 40])
    assert looked(tree).strata[3].modes == {"L": 2, "RGB": 1}


def test_what_a_header_shows_is_found_without_decoding_and_the_rest_with(tree: Path) -> None:
    bad = {"train/normal/p22-0.png": "format", "train/normal/p23-0.png": "empty", f"train/sick/{HOSTILE}": "format"}
    assert {name: code for name, (code, _) in looked(tree).failures.items()} == bad
    whole = looked(tree, full=True)
    assert {name: code for name, (code, _) in whole.failures.items()} == {**bad, "train/sick/p24-0.png": "damaged"}
    assert whole.full


@pytest.mark.parametrize("full", [False, True])
def test_identical_images_and_groups_on_two_sides_are_leaks(tree: Path, full: bool) -> None:
    found = looked(tree, full=full)
    crossing = [each for each in found.identical if each.crosses]
    assert [each.images for each in crossing] == [["test/normal/p20-0.png", "train/normal/p0-0.png"]]
    assert [each.images for each in found.identical if len(each.labels) > 1] == [
        ["train/normal/p6-0.png", "train/sick/p21-0.png"]
    ]
    assert len(found.identical) == 2
    assert [each.images for each in found.groups] == [["test/sick/p1-1.jpg", "train/sick/p1-0.png"]]
    assert len(found.leaks) == 2


def test_files_of_one_size_that_differ_are_not_identical(tmp_path: Path) -> None:
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)
        (tmp_path / f"{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"{i % 2}" / f"{i}.bmp")
    found = check(Manifest.read(tmp_path))
    assert len({path.stat().st_size for path in tmp_path.rglob("*.bmp")}) == 1
    assert not found.identical


def test_a_clean_folder_has_no_leak_and_no_failure(class_folder: Path) -> None:
    found = check(Manifest.read(class_folder, r"/(\w+p\d)"), full=True)
    assert (found.leaks, found.failures, found.n_unlabelled, found.n_ungrouped) == ([], {}, 0, 0)


def test_links_out_of_the_folder_are_failures_that_nobody_opens(tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a" / "1.png", 0)
    os.mkfifo(tmp_path / "fifo.png")
    os.symlink(tmp_path / "fifo.png", tmp_path / "in" / "a" / "2.png")
    draw(tmp_path / "3.png", 3)
    os.symlink(tmp_path / "3.png", tmp_path / "in" / "a" / "3.png")
    found = check(Manifest.read(tmp_path / "in"))
    assert {name: code for name, (code, _) in found.failures.items()} == {"a/3.png": "outside"}
    assert found.skipped == {"not a regular file": 1}


def test_a_file_of_a_csv_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    draw(tmp_path / "1.png", 0)
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "m.csv").write_text("path,label\n1.png,a\n2.png,\nfifo.png,b\n")
    found = check(Manifest.read(tmp_path / "m.csv"))
    assert {name: code for name, (code, _) in found.failures.items()} == {"2.png": "missing", "fifo.png": "not-a-file"}
    assert found.n_unlabelled == 1


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("L", "png", ("PNG", "L", 8)), ("1", "png", ("PNG", "1", 1)), ("RGB", "jpg", ("JPEG", "RGB", 8)),
        ("I;16", "png", ("PNG", "I;16", 16)), ("I;16", "tif", ("TIFF", "I;16", 16)), ("L", "bmp", ("BMP", "L", 8)),
        ("F", "tif", ("TIFF", "F", 32)), ("RGB", "webp", ("WEBP", "RGB", 8)), ("L", "gif", ("GIF", "P", 8)),
    ],
)  # fmt: skip
def test_a_header_says_what_the_file_holds(
    tmp_path: Path, mode: str, suffix: str, expected: tuple[str, str, int]
) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.new(mode, (30, 20)).save(path)
    found = headers.read(path)
    assert (found.kind, found.mode, found.bits) == expected
    assert (found.width, found.height, found.n_frames, found.n_bytes) == (30, 20, 1, path.stat().st_size)


def test_a_dicom_header_says_it_too_and_nothing_of_the_patient(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    (tmp_path / "x.dcm").write_bytes(dicom(np.arange(600, dtype=np.uint16).reshape(20, 30), BitsStored=12))
    found = headers.read(tmp_path / "x.dcm")
    assert (found.kind, found.width, found.height, found.bits, found.n_frames) == ("DICOM", 30, 20, 12, 1)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "x.dcm").read_bytes()[:150])
    with pytest.raises(ImageError, match="damaged DICOM") as caught:
        headers.read(tmp_path / "cut.dcm")
    assert caught.value.code == "dicom"


def test_what_decoding_refuses_by_the_header_is_refused_by_the_header(tmp_path: Path) -> None:
    frames = [Image.new("L", (20, 20), i) for i in range(3)]
    frames[0].save(tmp_path / "frames.gif", save_all=True, append_images=frames[1:])
    Image.new("L", (400, 2)).save(tmp_path / "thin.png")
    Image.new("1", (3000, 3000)).save(tmp_path / "large.png")
    spec = DecodeSpec(max_pixels=1_000_000)
    found = check(Manifest.read(tmp_path), decode=spec)
    assert {name: code for name, (code, _) in found.failures.items()} == {
        "frames.gif": "frames", "thin.png": "aspect", "large.png": "too-large",
    }  # fmt: skip
    found = check(Manifest.read(tmp_path), decode=DecodeSpec(first_frame=True, max_pixels=10_000_000))
    assert list(found.failures) == ["thin.png"]


def test_no_damage_of_a_header_is_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "x.png"
    for suffix in ("PNG", "TIFF", "GIF", "JPEG", "BMP"):
        stream = io.BytesIO()
        Image.new("L", (30, 20)).save(stream, suffix)
        for _ in range(40):
            data = bytearray(stream.getvalue()[: rng.integers(1, len(stream.getvalue()))])
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            path.write_bytes(data)
            with suppress(ImageError):  # and nothing else
                headers.read(path).check()


# --- on the command line ----------------------------------------------------------------------------------------------


def test_unreadable_files_exit_3_and_are_named_without_harm(tree: Path, tmp_path: Path) -> None:
    done = featcache("check", tree, "--group-pattern", r"/(p\d+)-", cwd=tmp_path)
    assert done.returncode == 3
    assert "3 of 22 cannot be used" in done.stdout
    assert r"<img src=x onerror=alert(1)>\n[red]=cmd.png" in done.stdout
    assert "2 sets of identical images, 1 with different labels; 1 in more than one subset" in done.stdout
    assert "1 in more than one subset\n  test and train: test/sick/p1-1.jpg, train/sick/p1-0.png" in done.stdout
    assert not done.stderr


def test_thousands_of_classes_are_a_short_table_and_whole_in_json(tmp_path: Path) -> None:
    """rich takes half a minute for a table of 20,000 lines."""
    draw(tmp_path / "one.png", 1)
    labels = [*("many" for _ in range(3)), *(f"c{i}" for i in range(2000))]
    rows = [f"{i},one.png,{label}" for i, label in enumerate(labels)]
    (tmp_path / "m.csv").write_text("\n".join(["image_id,path,label", *rows]) + "\n")
    found = check(Manifest.read(tmp_path / "m.csv"))
    with io.StringIO() as text:
        print_checked(Console(file=text, width=120), found)
        lines = text.getvalue().splitlines()
    assert len(found.as_json()["classes"]) == 2001
    assert sum(len(re.findall(r"^–\s+(c\d+|many)\s", line)) for line in lines) == 40
    assert any("many" in line for line in lines)
    assert "1,961 more lines, of 1,961 images, are in --json" in " ".join(" ".join(lines).split())


def test_leaks_exit_0_and_with_strict_1(tree: Path, tmp_path: Path) -> None:
    clean = shutil.copytree(tree, tmp_path / "images")
    for name in ("normal/p22-0.png", "normal/p23-0.png", f"sick/{HOSTILE}"):
        (clean / "train" / name).unlink()
    assert featcache("check", clean, cwd=tmp_path).returncode == 0
    assert featcache("check", clean, "--strict", cwd=tmp_path).returncode == 1
    (clean / "test" / "normal" / "p20-0.png").unlink()
    assert featcache("check", clean, "--strict", cwd=tmp_path).returncode == 0


def test_check_answers_scripts_with_one_json_object(tree: Path, tmp_path: Path) -> None:
    done = featcache("check", tree, "--group-pattern", r"/(p\d+)-", "--json", cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert done.returncode == 3
    assert (answer["images"], len(answer["unreadable"]), answer["leaks"]) == (22, 3, 2)
    assert answer["groups"]["across_splits"][0]["splits"] == ["test", "train"]
    assert sum(each["n_images"] for each in answer["classes"]) == 22


@pytest.mark.real
def test_the_real_set_of_kermany_leaks_nothing_by_name_or_content() -> None:
    found = check(Manifest.read(shared("data", "kermany224"), KERMANY_GROUPS))
    assert (found.n_images, found.failures, found.leaks) == (5840, {}, [])
    assert len(found.identical) == 30
    assert found.sizes == {"224 x 224": 5840}
    assert found.skipped == {"system file": 3}
