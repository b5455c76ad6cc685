"""Known collections: no image vanishes without a number, and what is written is read again."""

import csv
import json
import os
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import splits
from featcache.errors import UsageError
from featcache.manifest import Manifest
from featcache.manifest.covid import covid
from featcache.manifest.datasets import iu_xray, kermany
from featcache.store import Store
from featcache.tables.missing import is_missing
from tests.conftest import draw, shared
from tests.test_cli import RANDOM, featcache

REPORTS = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
STUDIES = [
    ("1", "normal", "normal", "Chest", "Cough", "None.", "Clear.", "=cmd|' /C calc'!A0"),
    ("2", "Opacity/lung/base;Cardiomegaly/mild", "Opacity;Cardiomegaly", "Chest", "", "", "-Two\nlines", "Large"),
    ("3", "No Indexing", "No Indexing", "Chest", "Pain", "None.", "", ""),
    ("4", "Cardiomegaly", "Cardiomegaly", "Chest", "Pain", "None.", "Big, heart", '"Quoted"'),
    ("5", "normal", "normal", "Chest", "", "", "", ""),
]
SHOTS = [
    ("1", "1_a.png", "Frontal"), ("1", "1_b.png", "Lateral"), ("2", "2_a.png", "Frontal"), ("3", "3_a.png", "Lateral"),
    ("4", "4_<img src=x onerror=alert(1)>.png", "Frontal"), ("9", "9_a.png", "Frontal"), ("4", "4_b.png", "Lateral"),
]  # fmt: skip


def write(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def indiana(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Both CSVs, and a folder with all images but the last, one that no CSV names, and a file that is none."""
    images = tmp_path / "images"
    for i, (_, name, _) in enumerate(SHOTS[:-1]):
        draw(images / "images_normalized" / name, i)
    draw(images / "extra.png", 99)
    (images / "notes.txt").write_text("not an image")
    reports = write(tmp_path / "indiana_reports.csv", REPORTS, STUDIES)
    return reports, write(tmp_path / "indiana_projections.csv", ("uid", "filename", "projection"), SHOTS), images


# --- Indiana University -----------------------------------------------------------------------------------------------


def test_a_row_per_projection_whose_image_is_there_and_the_others_counted(indiana: tuple[Path, Path, Path]) -> None:
    manifest, counts = iu_xray(*indiana)
    assert manifest.image_ids == [name for _, name, _ in SHOTS[:-1]]
    assert all(path.is_file() for path in manifest.paths)
    assert manifest.columns["group"] == ["1", "1", "2", "3", "4", "9"]
    assert manifest.columns["label"] == ["normal", "normal", "abnormal", "abnormal", "abnormal", ""]
    assert manifest.columns["projection"] == ["Frontal", "Lateral", "Frontal", "Lateral", "Frontal", "Frontal"]
    assert manifest.columns["findings"] == ["Clear.", "Clear.", "-Two\nlines", "", "Big, heart", ""]
    assert manifest.skipped == {"not an image name": 1}
    assert counts == {
        "projections": 7, "reports": 5, "missing": 1, "unlisted": 1, "no_report": 1, "no_projection": 1,
        "not_indexed": 1,
    }  # fmt: skip


def test_without_a_folder_all_rows_of_the_csvs_are_there(indiana: tuple[Path, Path, Path]) -> None:
    manifest, counts = iu_xray(*indiana[:2])
    assert len(manifest) == 7
    assert "missing" not in counts
    assert manifest.paths[0] == indiana[1].parent / "1_a.png"


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("Cardiomegaly", ["no", "no", "yes", "", "yes", ""]),
        ("opacity/lung", ["no", "no", "yes", "", "no", ""]),
        ("Opacity/lung/base", ["no", "no", "yes", "", "no", ""]),
        ("normal", ["yes", "yes", "no", "", "no", ""]),
    ],
)
def test_the_label_may_be_any_finding(indiana: tuple[Path, Path, Path], label: str, found: list[str]) -> None:
    """Studies that nobody has indexed may have it or not."""
    assert iu_xray(*indiana, label=label).manifest.columns["label"] == found


def test_a_finding_that_nobody_has_is_refused_with_those_there_are(indiana: tuple[Path, Path, Path]) -> None:
    with pytest.raises(UsageError, match=r"no study has the finding 'opac'.*cardiomegaly"):
        iu_xray(*indiana, label="opac")


def test_the_manifest_of_a_collection_is_read_again_as_it_is(indiana: tuple[Path, Path, Path]) -> None:
    found = iu_xray(*indiana)
    output = indiana[0].with_name("m.csv")
    found.write(output, *indiana[:2])
    again = Manifest.read(output)
    assert again.refused == {}
    assert again.image_ids == found.manifest.image_ids
    assert [path.resolve() for path in again.paths] == [path.resolve() for path in found.manifest.paths]
    assert {name: again.columns[name] for name in found.manifest.columns} == found.manifest.columns
    assert again.columns.keys() - found.manifest.columns.keys() == {"path"}
    assert "\n=cmd" not in output.read_text()
    assert ",=cmd" not in output.read_text()


def test_a_manifest_is_never_written_over_what_it_was_made_from(indiana: tuple[Path, Path, Path]) -> None:
    before = indiana[0].read_bytes()
    with pytest.raises(UsageError, match="give another file"):
        iu_xray(*indiana).write(indiana[0], *indiana[:2])
    assert indiana[0].read_bytes() == before


@pytest.mark.parametrize("text", ["my,labels\n1,2\n", "", "path,label\n", b"\xff\xfe"])
def test_a_manifest_replaces_an_earlier_one_of_its_kind_and_nothing_else(
    indiana: tuple[Path, Path, Path], tmp_path: Path, text: str | bytes
) -> None:
    output, data = tmp_path / "m.csv", text if isinstance(text, bytes) else text.encode()
    output.write_bytes(data)
    with pytest.raises(UsageError, match=r"m\.csv is there, and no earlier manifest of this kind"):
        iu_xray(*indiana).write(output)
    assert output.read_bytes() == data
    output.unlink()
    iu_xray(*indiana).write(output)
    iu_xray(*indiana[:2]).write(output)  # of all rows, beside whose CSVs no image is: now they need no names
    assert len(Manifest.read(output)) == len(SHOTS)


def test_folders_of_a_manifest_are_made(indiana: tuple[Path, Path, Path], tmp_path: Path) -> None:
    done = featcache("manifest", "iu-xray", *indiana[:2], "-o", "new/folder/m.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "folder" / "m.csv").is_file()


@pytest.mark.parametrize(
    ("which", "text", "message"),
    [
        (0, "", "reports.csv, line 1: no column named uid"),
        (0, "uid,MeSH,Problems\n1,a,b\n", "line 1: no column named indication"),
        (0, ",".join(REPORTS) + "\n", "a header and no rows"),
        (0, ",".join(REPORTS) + "\n1,a\n", "line 2: the number of cells"),
        (
            0,
            ",".join(REPORTS) + "\n1,a,b,c,d,e,f,g\n1,a,b,c,d,e,f,h\n",
            "impression: uid '1' has another text in line 2",
        ),
        (0, ",".join(REPORTS) + '\n1,"a,b,c,d,e,f,g\n', "not a CSV"),
        (0, ",".join(REPORTS) + "\nNaN,a,b,c,d,e,f,g\n", "line 2, column uid: 'NaN', a word for a missing value"),
        (1, "uid,filename\n1,a.png\n", "line 1: no column named projection"),
        (1, "uid,filename,projection\n1,,Frontal\n", "line 2, column filename: empty"),
        (1, "uid,filename,projection\n1,a.png,F\n2,a.png,F\n", "line 3: 'a.png' stands already at line 2"),
        (1, "uid,filename,projection\n1,a\0.png,F\n", "line 2, column filename: a zero byte"),
        (1, "uid,filename,projection\n1,nowhere.png,F\n", "none of the 1 images is under"),
    ],
)
def test_damaged_csvs_are_refused_with_line_and_column(
    indiana: tuple[Path, Path, Path], which: int, text: str, message: str
) -> None:
    indiana[which].write_text(text)
    with pytest.raises(UsageError, match=message):
        iu_xray(*indiana)


def test_a_csv_that_is_not_utf8_or_not_there_is_refused(indiana: tuple[Path, Path, Path]) -> None:
    indiana[0].write_bytes(b"uid,MeSH\n1,caf\xe9\n")
    with pytest.raises(UsageError, match=r"line 2: not UTF-8 \(byte 0xe9\)"):
        iu_xray(*indiana)
    indiana[0].unlink()
    with pytest.raises(UsageError, match="no such file"):
        iu_xray(*indiana)


def test_an_image_of_two_folders_is_not_guessed(indiana: tuple[Path, Path, Path]) -> None:
    draw(indiana[2] / "other" / "1_a.png", 7)
    with pytest.raises(UsageError, match=r"1 names in more than one folder, the first '1_a.png'"):
        iu_xray(*indiana)


def test_a_name_that_leads_out_of_the_folder_is_not_followed(indiana: tuple[Path, Path, Path]) -> None:
    write(
        indiana[1], ("uid", "filename", "projection"), [("1", "../../1_a.png", "Frontal"), ("2", "2_a.png", "Frontal")]
    )
    draw(indiana[2].parents[1] / "1_a.png", 1)
    assert list(iu_xray(*indiana[:2]).manifest.refused) == ["../../1_a.png"]
    assert iu_xray(*indiana).counts["missing"] == 1


@pytest.mark.real
def test_the_real_csvs_have_the_counts_they_should() -> None:
    paths = shared("data", "indiana", "indiana_reports.csv"), shared("data", "indiana", "indiana_projections.csv")
    manifest, counts = iu_xray(*paths)
    assert len(manifest) == 7466
    assert Counter(manifest.columns["projection"]) == {"Frontal": 3818, "Lateral": 3648}
    assert len(set(manifest.columns["group"])) == counts["reports"] == 3851
    assert Counter(manifest.columns["label"]) == {"normal": 2695, "abnormal": 4771}
    assert (counts["no_report"], counts["no_projection"], counts["not_indexed"]) == (0, 0, 92)
    assert Counter(iu_xray(*paths, label="Cardiomegaly").manifest.columns["label"])["yes"] > 500


@pytest.mark.real
def test_no_study_of_the_real_set_is_on_two_sides_of_a_split_and_all_of_it_is_read_again(tmp_path: Path) -> None:
    found = iu_xray(
        shared("data", "indiana", "indiana_reports.csv"), shared("data", "indiana", "indiana_projections.csv")
    )
    columns = found.manifest.columns
    groups = splits.merge_groups(columns["group"])
    kept, held = splits.hold_out(np.array(columns["label"]), groups, 0.2, seed=0)
    assert 0.19 < len(held) / len(groups) < 0.21
    assert {columns["group"][i] for i in kept}.isdisjoint(columns["group"][i] for i in held)
    found.write(tmp_path / "m.csv")
    again = Manifest.read(tmp_path / "m.csv", allow_outside=True)
    assert again.image_ids == found.manifest.image_ids
    assert {name: again.columns[name] for name in columns} == columns


# --- Kermany ----------------------------------------------------------------------------------------------------------

KERMANY = [
    "train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/NORMAL2-IM-0092-0001.jpeg", "train/PNEUMONIA/person1_virus_6.jpeg",
    "train/PNEUMONIA/person1_bacteria_2.jpeg", "test/NORMAL/IM-0115-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg",
    "val/NORMAL/IM-0001-0001.jpeg", "val/PNEUMONIA/renamed.jpeg",
]  # fmt: skip


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_kermany_has_patients_kinds_and_splits(tmp_path: Path) -> None:
    manifest, counts = kermany(touch(tmp_path, *KERMANY, "train/NORMAL/.DS_Store"))
    rows = {name: i for i, name in enumerate(manifest.image_ids)}
    of = {name: [manifest.columns[name][rows[each]] for each in KERMANY] for name in manifest.columns}
    assert of["group"] == [
        "train/IM-0115", "train/NORMAL2-IM-0092", "train/person1", "train/person1", "test/IM-0115", "test/person1",
        "val/IM-0001", "val/PNEUMONIA/renamed.jpeg",
    ]  # fmt: skip
    assert of["kind"] == ["normal", "normal", "virus", "bacteria", "normal", "virus", "normal", ""]
    assert of["split"] == ["train"] * 4 + ["test"] * 2 + ["val"] * 2
    assert counts == {"ungrouped": 1, "no_kind": 1}
    assert manifest.skipped == {"system file": 1}


@pytest.mark.parametrize("train", ["Training", "TRAIN", "training_set"])
def test_kermanys_patients_are_read_below_any_spelling_of_the_subsets(tmp_path: Path, train: str) -> None:
    names = [f"{train}/PNEUMONIA/person7_bacteria_{i}.jpeg" for i in range(3)] + [f"{train}/NORMAL/IM-0001-0001.jpeg"]
    manifest, counts = kermany(touch(tmp_path, *names, "Test/PNEUMONIA/person7_virus_1.jpeg"))
    assert counts["ungrouped"] == 0
    assert Counter(manifest.columns["group"]) == {f"{train}/person7": 3, f"{train}/IM-0001": 1, "Test/person7": 1}


@pytest.mark.parametrize("names", [["a/1.png", "b/2.png"], ["train/a/1.png", "test/b/1.png"], ["NORMAL/1.png"]])
def test_another_tree_than_kermanys_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UsageError, match=r"not a tree of train\|val\|test / NORMAL\|PNEUMONIA"):
        kermany(touch(tmp_path, *names))


@pytest.mark.real
def test_the_real_set_of_kermany_has_the_counts_it_should() -> None:
    manifest, counts = kermany(shared("data", "kermany224"))
    assert counts == {"ungrouped": 0, "no_kind": 0}
    assert Counter(zip(manifest.columns["split"], manifest.columns["label"], strict=True)) == {
        ("train", "NORMAL"): 1341, ("train", "PNEUMONIA"): 3875, ("test", "NORMAL"): 234, ("test", "PNEUMONIA"): 390,
    }  # fmt: skip
    kinds = Counter(manifest.columns["kind"])
    assert kinds["normal"] == 1575
    assert kinds["bacteria"] + kinds["virus"] == 4265


# --- COVID-19 ---------------------------------------------------------------------------------------------------------

METADATA = ("patientid", "sex", "finding", "view", "modality", "location", "folder", "filename", "license", "")
CASES = [
    ("2", "M", "Pneumonia/Viral/COVID-19", "PA", "X-ray", "Hanoi, Vietnam", "images", "a.jpeg", "", ""),
    ("2", "M", "Pneumonia/Viral/COVID-19", "L", "X-ray", "", "images", "b.png", "CC BY", ""),
    ("3", "F", "Pneumonia/Viral/SARS", "AP", "X-ray", "", "images", "c.jpg", "", ""),
    ("4", "F", "Pneumonia/Bacterial/Streptococcus", "PA", "X-ray", "", "images", "d.jpg", "", ""),
    ("5", "", "Pneumonia", "AP Supine", "X-ray", "", "images", "e.jpg", "", ""),
    ("6", "", "No Finding", "PA", "X-ray", "", "images", "f.jpg", "", ""),
    ("7", "", "todo", "PA", "X-ray", "", "images", "g.jpg", "", ""),
    ("8", "", "Pneumonia/Viral/COVID-19", "Axial", "CT", "", "volumes", "h.nii.gz", "", ""),
    ("8", "", "Pneumonia/Viral/COVID-19", "Axial", "CT", "", "images", "i.jpg", "", ""),
    ("9", "", "Tuberculosis", "PA", "X-ray", "", "images", "gone.jpg", "", ""),
    ("9", "", "Tuberculosis", "PA", "X-ray", "", "volumes", "j.nii.gz", "", ""),
    ("2", "M", "Pneumonia/Viral/COVID-19", "PA", "X-ray", "Hanoi, Vietnam", "images", "a.jpeg", "", ""),
]


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    """The CSV as the repository has it, with a last column without a name, and the images that are there."""
    for i, case in enumerate(CASES):
        if case[7].endswith(("jpg", "png", "jpeg")) and case[7] != "gone.jpg":
            draw(tmp_path / case[6] / case[7], i)
    return write(tmp_path / "metadata.csv", METADATA, CASES)


def test_rows_without_an_image_are_counted_by_reason(metadata: Path) -> None:
    manifest, counts = covid(metadata)
    assert [name.removeprefix("images/") for name in manifest.image_ids] == [
        "a.jpeg", "b.png", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg",
    ]  # fmt: skip
    assert counts == {
        "rows": 12, "other_modality": 2, "volume": 1, "missing": 1, "repeated": 1, "no_label": 1,
    }  # fmt: skip
    assert len(manifest) + sum(counts[name] for name in ("other_modality", "volume", "missing", "repeated")) == 12
    assert manifest.columns["group"] == ["2", "2", "3", "4", "5", "6", "7"]
    assert manifest.columns["view"] == ["PA", "L", "AP", "PA", "AP Supine", "PA", "PA"]
    assert manifest.columns["location"][0] == "Hanoi, Vietnam"
    assert "sex" not in manifest.columns


@pytest.mark.parametrize(
    ("asked", "labels"),
    [
        ({}, ["COVID-19", "COVID-19", "SARS", "Streptococcus", "Pneumonia", "No Finding", ""]),
        ({"classes": ("covid-19",), "other": "other"}, ["covid-19"] * 2 + ["other"] * 4 + [""]),
        (
            {"classes": ("COVID-19", "Viral", "Bacterial", "No Finding")},
            ["COVID-19", "COVID-19", "Viral", "Bacterial", "", "No Finding", ""],
        ),
        ({"classes": ("Viral", "COVID-19")}, ["Viral", "Viral", "Viral", "", "", "", ""]),
    ],
)
def test_nested_findings_become_the_first_class_they_have(
    metadata: Path, asked: dict[str, object], labels: list[str]
) -> None:
    assert covid(metadata, **asked).manifest.columns["label"] == labels


def test_ct_slices_are_kept_where_they_are_asked_for(metadata: Path) -> None:
    assert len(covid(metadata, modality="").manifest) == 8
    assert covid(metadata, modality="CT").manifest.image_ids == ["images/i.jpg"]


def test_a_class_that_nothing_has_is_refused_with_those_there_are(metadata: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no image of .*metadata.csv has the finding 'Covid'. Did you mean 'COVID-19'"
    ):
        covid(metadata, classes=["Covid"])


def test_one_image_of_two_findings_or_patients_is_refused_with_both_lines(metadata: Path) -> None:
    for column, place, value in (("finding", 2, "Pneumonia"), ("patientid", 0, "another")):
        other = (*CASES[0][:place], value, *CASES[0][place + 1 :])
        write(metadata, METADATA, [*CASES, other])
        with pytest.raises(UsageError, match=rf"line 14, column {column}: not that of line 2"):
            covid(metadata)


def test_an_image_is_one_however_its_folder_is_written(metadata: Path) -> None:
    again = [(*CASES[0][:6], folder, *CASES[0][7:]) for folder in ("images/", "./images", "images/../images")]
    write(metadata, METADATA, [*CASES, *again])
    manifest, counts = covid(metadata)
    assert len(set(manifest.image_ids)) == len(manifest) == 7
    assert counts["repeated"] == 4
    other = ("2", "M", "Pneumonia", *CASES[0][3:6], "images/", *CASES[0][7:])
    write(metadata, METADATA, [*CASES, other])
    with pytest.raises(UsageError, match=r"line 14, column finding: not that of line 2"):
        covid(metadata)


def test_images_that_are_not_below_the_folder_of_the_csv_are_counted(metadata: Path, tmp_path: Path) -> None:
    command = ("manifest", "covid", metadata, "--json", "-o")
    assert json.loads(featcache(*command, "here.csv", cwd=tmp_path).stdout)["outside"] == 0
    done = featcache(*command, "elsewhere/m.csv", cwd=tmp_path)
    assert json.loads(done.stdout)["outside"] == 7
    assert "note: 7 of the images are not below" in done.stderr
    assert "--allow-outside" in done.stderr
    assert len(Manifest.read(tmp_path / "elsewhere" / "m.csv").refused) == 7


def test_paths_of_the_csv_do_not_leave_the_folder(metadata: Path) -> None:
    draw(metadata.parents[1] / "out.jpg", 1)
    case = ("2", "", "Pneumonia", "PA", "X-ray", "", "..", "out.jpg", "", "")
    write(metadata, METADATA, [*CASES, case])
    assert list(covid(metadata).manifest.refused) == ["../out.jpg"]


def test_class_folders_are_classes_and_their_masks_are_none(tmp_path: Path) -> None:
    touch(tmp_path, "COVID/images/1.png", "COVID/masks/1.png", "Normal/images/1.png", "Viral Pneumonia/images/p2.png")
    manifest, counts = covid(tmp_path, group_pattern=r"(p\d)")
    assert manifest.columns["label"] == ["COVID", "Normal", "Viral Pneumonia"]
    assert counts == {"masks": 1, "no_label": 0}
    assert manifest.n_ungrouped == 2
    binary = covid(tmp_path, classes=["COVID"], other="other").manifest
    assert binary.columns["label"] == ["COVID", "other", "other"]


def test_a_folder_of_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1 folder\(s\) of classes"):
        covid(touch(tmp_path, "COVID/1.png"))


# --- a manifest writes itself -----------------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from([*"'=+-@\t ,;\"<&é.\n\r", *string.ascii_letters]), min_size=1, max_size=10)


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=5, unique_by=lambda row: row[0]))
def test_whatever_is_written_is_read_again_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("written")
    paths = [folder / f"x{name}" for name, _ in rows]
    columns = {"note": [note for _, note in rows]}
    manifest = Manifest([name for name, _ in rows], paths, columns, folder)
    try:
        manifest.write(folder / "m.csv")
    except UsageError:
        assert any(text != text.strip() or is_missing(text, prose=True) for row in rows for text in row)  # only those
        return
    again = Manifest.read(folder / "m.csv")
    assert (again.image_ids, again.paths, again.columns["note"]) == (manifest.image_ids, paths, columns["note"])


def test_names_that_are_their_paths_are_not_written_twice(tmp_path: Path) -> None:
    manifest = Manifest.read(touch(tmp_path / "images", "train/a/1.png", "test/b/ 2.png", "train/=a/3.png"))
    manifest.write(tmp_path / "images" / "m.csv")
    again = Manifest.read(tmp_path / "images" / "m.csv")
    assert (again.image_ids, again.paths, again.columns) == (manifest.image_ids, manifest.paths, manifest.columns)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([b"a/caf\xe9.png"], r"row 1, column path: .* is not UTF-8"),
        ([b" a/1.png"], "row 1, column label: ' a' would be read as another text"),
    ],
)
def test_what_no_csv_brings_back_is_refused_with_row_and_column(
    tmp_path: Path, names: list[bytes], message: str
) -> None:
    for name in names:
        touch(tmp_path / "images", os.fsdecode(name))
    with pytest.raises(UsageError, match=message):
        Manifest.read(tmp_path / "images").write(tmp_path / "images" / "m.csv")
    assert not (tmp_path / "images" / "m.csv").exists()


def test_paths_are_relative_as_the_system_follows_links(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "a/1.png")
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    os.symlink(tmp_path / "deep" / "deeper", tmp_path / "link")
    manifest = Manifest.read(images)
    manifest.write(tmp_path / "link" / "m.csv")
    again = Manifest.read(tmp_path / "link" / "m.csv", allow_outside=True)
    assert again.image_ids == ["a/1.png"]
    assert again.paths[0].samefile(images / "a" / "1.png")
    assert list(Manifest.read(tmp_path / "link" / "m.csv").refused) == ["a/1.png"]


def test_a_manifest_is_a_csv_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"m\.txt: the name of a manifest ends with \.csv"):
        Manifest.read(touch(tmp_path, "a/1.png")).write(tmp_path / "m.txt")


# --- on the command line ----------------------------------------------------------------------------------------------


def test_the_manifest_that_is_written_is_embedded(indiana: tuple[Path, Path, Path], tmp_path: Path) -> None:
    reports, projections, images = indiana
    done = featcache("manifest", "iu-xray", reports, projections, "--images", images, "-o", "m.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 missing" in done.stdout
    assert "m.csv: 6 images" in done.stdout
    done = featcache("embed", "m.csv", "-o", "s.h5", *RANDOM, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Store.open(tmp_path / "s.h5") as store:
        found = iu_xray(*indiana).manifest
        assert store.image_ids == found.image_ids
        assert {name: store.columns[name] for name in found.columns} == found.columns


def test_manifest_answers_scripts_with_one_json_object(metadata: Path, tmp_path: Path) -> None:
    arguments = (
        "covid",
        metadata,
        "-o",
        "m.csv",
        "--class",
        "COVID-19",
        "--class",
        "Viral",
        "--other",
        "rest",
        "--json",
    )
    done = featcache("manifest", *arguments, cwd=tmp_path)
    answer = json.loads(done.stdout)
    assert (answer["images"], answer["rows"], answer["missing"]) == (7, 12, 1)
    assert answer["label"] == {"": 1, "COVID-19": 2, "Viral": 1, "rest": 3}
    assert answer["groups"] == 6
    assert len(Manifest.read(tmp_path / "m.csv")) == 7


def test_a_wrong_csv_is_one_line_and_exit_code_2(metadata: Path, tmp_path: Path) -> None:
    metadata.write_text("patientid,finding\n1,x\n")
    done = featcache("manifest", "covid", metadata, "-o", "m.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "line 1: no column named view" in done.stderr
