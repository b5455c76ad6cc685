"""Where images come from: nothing is lost, nothing is taken for what it is not."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.durable import text_of
from featcache.errors import UsageError
from featcache.manifest import Manifest, outside
from featcache.tables.missing import is_missing
from tests.conftest import KERMANY_GROUPS, shared


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def test_an_image_that_is_named_itself_is_the_only_one(tmp_path: Path) -> None:
    """Also through a link out of its folder, which is what was asked for."""
    touch(tmp_path, "far/one.JPEG", "near/other.png", "notes.txt")
    (tmp_path / "near" / "link.png").symlink_to(tmp_path / "far" / "one.JPEG")
    for name in ("far/one.JPEG", "near/link.png"):
        manifest = Manifest.read(tmp_path / name)
        assert (manifest.image_ids, manifest.paths) == ([Path(name).name], [tmp_path / name])
        assert (manifest.columns, manifest.refused) == ({}, {})
    with pytest.raises(UsageError, match=r"notes\.txt is neither a folder nor a table, and no image by its name"):
        Manifest.read(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=r"nothing does not exist"):
        Manifest.read(tmp_path / "nothing")


def test_class_folders_give_labels(tmp_path: Path) -> None:
    manifest = Manifest.read(touch(tmp_path, "b/2.png", "a/1.JPG", "a/deep/3.jpeg"))
    assert manifest.image_ids == ["a/1.JPG", "a/deep/3.jpeg", "b/2.png"]
    assert manifest.columns == {"label": ["a", "a", "b"]}


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Valid"])
def test_split_folders_above_the_classes_give_the_split(tmp_path: Path, val: str) -> None:
    manifest = Manifest.read(touch(tmp_path, "train/a/1.png", f"{val}/a/1.png", "test/b/1.png"))
    split = dict(zip(manifest.image_ids, manifest.columns["split"], strict=True))
    assert split == {"train/a/1.png": "train", f"{val}/a/1.png": "val", "test/b/1.png": "test"}
    assert sorted(manifest.columns["label"]) == ["a", "a", "b"]


def test_a_class_named_test_is_a_class(tmp_path: Path) -> None:
    manifest = Manifest.read(touch(tmp_path, "test/1.png", "control/1.png"))
    assert manifest.columns == {"label": ["control", "test"]}


def test_the_same_base_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    assert len(Manifest.read(touch(tmp_path, "a/1.png", "b/1.png"))) == 2


def test_what_is_no_image_is_skipped_and_counted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", ".DS_Store", "a/Thumbs.db", "__MACOSX/a/._1.png", "a/notes.txt", "a/._1.png")
    (tmp_path / "a" / "dir.png").mkdir()
    os.mkfifo(tmp_path / "a" / "fifo.png")
    os.symlink("loop.png", tmp_path / "a" / "loop.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a" / "s.png"))
        manifest = Manifest.read(tmp_path)
    assert manifest.image_ids == ["a/1.png"]
    assert manifest.skipped == {"system file": 4, "not an image name": 1, "not a regular file": 3}


def test_names_keep_their_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    raw = [b"caf\xe9.png", "cafe\u0301.png".encode(), "caf\u00e9.png".encode(), b"new\nline.png", b"x" * 240 + b".png"]
    for name in raw:
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"x")
    found = Manifest.read(tmp_path).image_ids
    assert sorted(os.fsencode(image_id) for image_id in found) == sorted(b"a/" + name for name in raw)


def test_no_image_found_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt")
    with pytest.raises(UsageError, match=r"found 0 images under .*looked for .*\.png.*skipped 1"):
        Manifest.read(tmp_path)


def test_links_out_of_the_folder_are_refused_unless_allowed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/1.png", "in/a/2.png")
    os.symlink(tmp_path / "elsewhere" / "1.png", tmp_path / "in" / "a" / "1.png")
    os.symlink("2.png", tmp_path / "in" / "a" / "3.png")
    assert list(Manifest.read(tmp_path / "in").refused) == ["a/1.png"]
    assert Manifest.read(tmp_path / "in", allow_outside=True).refused == {}


# --- groups -----------------------------------------------------------------------------------------------------------


def test_group_pattern_joins_what_it_captures_and_counts_what_it_misses(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/N/IM-0001-0001.png",
        "test/N/NORMAL2-IM-0001.png",
        "train/P/person1_virus_2.png",
        "train/P/x.png",
    )
    manifest = Manifest.read(tmp_path, KERMANY_GROUPS)
    assert dict(zip(manifest.image_ids, manifest.columns["group"], strict=True)) == {
        "test/N/NORMAL2-IM-0001.png": "test/NORMAL2-IM-0001",
        "train/N/IM-0001-0001.png": "train/IM-0001",
        "train/P/person1_virus_2.png": "train/person1",
        "train/P/x.png": "train/P/x.png",
    }
    assert manifest.n_ungrouped == len(manifest.ungrouped) == 1


@pytest.mark.parametrize(("pattern", "reason"), [("(", "not a regular expression"), ("person", "captures nothing")])
def test_a_bad_group_pattern_is_refused(tmp_path: Path, pattern: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Manifest.read(touch(tmp_path, "a/1.png"), pattern)


# --- CSV --------------------------------------------------------------------------------------------------------------


def write_csv(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "images.csv"
    path.write_text(text, encoding)
    return path


def test_csv_keeps_every_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "path,label,view,split\na/1.png,x,PA,Validation\nb/2.png,,AP,\n", "utf-8-sig")
    manifest = Manifest.read(path)
    assert manifest.image_ids == ["a/1.png", "b/2.png"]
    assert manifest.paths[0] == tmp_path / "a/1.png"
    assert manifest.columns == {"label": ["x", ""], "view": ["PA", "AP"], "split": ["val", ""]}


def test_csv_may_name_its_images(tmp_path: Path) -> None:
    manifest = Manifest.read(write_csv(tmp_path, "image_id,path\nfirst,a/1.png\nsecond,a/1.png\n"))
    assert manifest.image_ids == ["first", "second"]
    assert manifest.columns == {"path": ["a/1.png", "a/1.png"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n1.png,x\n", "no column named path .* give path_column='file'"),
        ("", "line 1: no column named path"),
        ("path,label\n", "no rows: found 0 images"),
        ("path,label\n1.png,x\n,y\n", "line 3, column path: empty"),
        ("path,label\n1.png,x\n1.png,y\n", "line 3: '1.png' stands already at line 2"),
        ("path,label\n1.png,x\n./1.png,y\n", "line 3: '1.png' stands already at line 2"),
        ("path,label\nNaN,x\n", "line 2, column path: 'NaN', a word for a missing value"),
        ("path,label\n1.png\n", "line 2: the number of cells"),
        ("path,label\n1.png,x,y\n", "line 2: the number of cells"),
        ("path,split\n1.png,fold3\n", "line 2, column split: 'fold3' is not"),
        ("path,path\n1.png,2.png\n", "unique"),
        ("path,a/b,a_b\n1.png,x,y\n", "two columns would have one name"),
    ],
)
def test_a_malformed_csv_is_refused_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Manifest.read(write_csv(tmp_path, text))


@pytest.mark.parametrize("path", ["../1.png", "/1.png", "a/../../1.png"])
def test_csv_paths_out_of_its_folder_are_refused_unless_allowed(tmp_path: Path, path: str) -> None:
    manifest = Manifest.read(write_csv(tmp_path, f"path\n{path}\n"))
    assert list(manifest.refused.values()) == ["leads out of the folder (`allow_outside` allows it)"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12), min_size=1, max_size=6)
)
def test_any_label_survives_a_csv(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    labels = [label for label in labels if not is_missing(label)]
    path = tmp_path_factory.mktemp("csv") / "images.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([f"{i}.png", label] for i, label in enumerate(labels))
    if labels:
        assert Manifest.read(path).columns["label"] == [label.strip() for label in labels]


@pytest.mark.real
def test_kermany_is_found_whole() -> None:
    manifest = Manifest.read(shared("data", "kermany224"), KERMANY_GROUPS)
    assert len(manifest) == 5840
    assert manifest.skipped == {"system file": 3}
    assert manifest.n_ungrouped == 0
    assert {side: manifest.columns["split"].count(side) for side in ("train", "test")} == {"train": 5216, "test": 624}


def test_something_beside_the_split_folders_does_not_make_them_classes(tmp_path: Path) -> None:
    manifest = Manifest.read(touch(tmp_path, "overview.png", "extra/1.png", "train/a/1.png", "test/b/1.png"))
    assert dict(zip(manifest.image_ids, manifest.columns["label"], strict=True)) == {
        "extra/1.png": "", "overview.png": "", "test/b/1.png": "b", "train/a/1.png": "a",
    }  # fmt: skip
    assert sorted(manifest.columns["split"]) == ["", "", "test", "train"]


def test_folders_may_be_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    touch(tmp_path, "a/1.png")
    try:
        assert Manifest.read(tmp_path).image_ids == ["a/1.png"]
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # Python's own rmtree recurses, pytest's too


@pytest.mark.parametrize(
    "text", ["path,label\n1.png,a\0\n", "path,la\0bel\n1.png,a\n", f"path,x\n1.png,{'x' * 20_000}\n"]
)
def test_cells_that_cannot_be_kept_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="line"):
        Manifest.read(write_csv(tmp_path, text))


# --- DICOM names ------------------------------------------------------------------------------------------------------

DICOM = b"\0" * 128 + b"DICM" + b"\0" * 9


def test_a_file_without_a_suffix_is_an_image_if_it_is_dicom(tmp_path: Path) -> None:
    touch(tmp_path, "README", "Makefile", "1.2.840.3", "a.dcm", "b.DICOM", "v1.5x", "DICOMDIR", "dicomdir")
    for name in ("IM0001", "1.2.840.113619.2.5", "notes.txt", "sub/IM0001"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(DICOM)
    os.symlink("IM0001", tmp_path / "linked")
    os.mkfifo(tmp_path / "fifo")
    manifest = Manifest.read(tmp_path)
    assert manifest.image_ids == ["1.2.840.113619.2.5", "IM0001", "a.dcm", "b.DICOM", "sub/IM0001"]
    assert manifest.skipped == {"not an image name": 6, "system file": 2, "not a regular file": 1}


# --- folders and files that cannot be read ----------------------------------------------------------------------------


def test_a_folder_that_cannot_be_listed_is_counted_and_named(tmp_path: Path) -> None:
    """Its path is longer than the system takes at once (PATH_MAX, 4096)."""
    touch(tmp_path, "a/1.png")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        manifest = Manifest.read(tmp_path)
    finally:
        subprocess.run(["rm", "-rf", tmp_path / ("d" * 200)], check=True)
    assert manifest.image_ids == ["a/1.png"]
    assert manifest.skipped == {"unreadable folder": 1}
    assert len(manifest.unreadable_folders) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to become somebody who may not read")
def test_what_may_not_be_read_is_counted_by_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "closed/1.png", "nobody-knows")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "nobody-knows").chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    code = (
        "import os, sys\nfrom featcache.manifest import Manifest\nos.seteuid(65534)\n"
        "found = Manifest.read(sys.argv[1])\n"
        "print(found.image_ids, sorted(found.skipped.items()), found.unreadable_folders)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.fspath(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == (
        "['a/1.png'] [('unreadable file without a suffix', 1), ('unreadable folder', 1)] ['closed']\n"
    )


# --- links and paths --------------------------------------------------------------------------------------------------


def test_links_that_lead_nowhere_or_to_folders_and_devices_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png")
    links = {"loop.png": "loop.png", "gone.png": "gone", "zero.png": "/dev/zero", "up.png": "..", "a/back": ".."}
    for name, target in links.items():
        os.symlink(target, tmp_path / name)
    manifest = Manifest.read(tmp_path)
    assert manifest.image_ids == ["a/1.png"]
    assert manifest.skipped == {"not a regular file": 3, "link to a folder": 2}


def test_everything_is_inside_the_root_of_the_file_system(tmp_path: Path) -> None:
    """The folder `/` ends with its separator already."""
    touch(tmp_path, "1.png")
    manifest = Manifest(["x"], [tmp_path / "1.png"], {}, Path("/"))
    assert outside(manifest) == {}


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    touch(tmp_path, "images2/1.png", "images/images.csv")
    (tmp_path / "images" / "images.csv").write_text("path\n../images2/1.png\n")
    assert list(Manifest.read(tmp_path / "images" / "images.csv").refused) == ["../images2/1.png"]


PIECES = st.sampled_from(["..", ".", "in", "deep", "out", "back", "up", "1.png", "a", "", "/", "~", "%2e%2e"])


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links out of it, into it and around."""
    top = tmp_path_factory.mktemp("maze")
    root = touch(top / "root", "1.png", "in/1.png", "in/deep/1.png")
    touch(top, "1.png", "out/1.png", "root2/1.png")
    for name, target in {
        "out": "../out", "in/up": "..", "in/deep/back": "../..", "in/deep/out": "/", "in/out": "../../root2",
    }.items():  # fmt: skip
        os.symlink(target, root / name)
    return root


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(PIECES, min_size=1, max_size=8))
def test_no_csv_path_escapes_the_folder(maze: Path, pieces: list[str]) -> None:
    """What is read must lie inside, whatever links and dots it passes; measured by what the system opens."""
    path = "/".join(pieces)
    if not path.strip():
        return
    source = maze / "images.csv"
    with open(source, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path"], [path]])
    manifest = Manifest.read(source)
    if manifest.refused or not manifest.paths[0].is_file():
        return
    opened = os.open(manifest.paths[0], os.O_RDONLY)
    try:
        assert Path(os.readlink(f"/proc/self/fd/{opened}")).is_relative_to(maze.resolve())
    finally:
        os.close(opened)


@settings(max_examples=100, deadline=None)
@given(target=st.lists(PIECES, min_size=1, max_size=6), below=st.sampled_from(["", "in", "in/deep"]))
def test_no_link_escapes_the_folder(maze: Path, target: list[str], below: str) -> None:
    link = maze / below / "link.png"
    if not (to := "/".join(target)):
        return
    os.symlink(to, link)
    try:
        manifest = Manifest.read(maze)
        for image_id, path in zip(manifest.image_ids, manifest.paths, strict=True):
            assert image_id in manifest.refused or path.resolve().is_relative_to(maze.resolve())
        assert Manifest.read(maze, allow_outside=True).refused == {}
    finally:
        link.unlink()


TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"), min_size=1, max_size=20)


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6, unique_by=lambda row: text_of(row[0].strip())),
    bom=st.booleans(),
)
def test_any_name_and_path_survive_a_csv(tmp_path_factory: pytest.TempPathFactory, rows: list, bom: bool) -> None:
    """But for the quote before a formula, as our own tables have it."""
    rows = [row for row in rows if not any(is_missing(text_of(text.strip()), prose=True) for text in row)]
    if not rows:
        return
    source = tmp_path_factory.mktemp("csv") / "images.csv"
    with open(source, "w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        csv.writer(file).writerows([["image_id", "path"], *rows])
    manifest = Manifest.read(source)
    assert manifest.image_ids == [text_of(name.strip()) for name, _ in rows]
    assert manifest.columns["path"] == [text_of(path) for _, path in rows]
    assert manifest.paths == [source.parent / text_of(path) for _, path in rows]


def test_a_csv_that_is_not_utf8_names_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "images.csv"
    path.write_bytes(b"path,label\n1.png,a\n2.png,caf\xe9\n")
    with pytest.raises(UsageError, match=r"line 3: not UTF-8 \(byte 0xe9\); save it as UTF-8"):
        Manifest.read(path)
    path.write_bytes(b'path,label\n1.png,a\n2.png,"b\n')
    with pytest.raises(UsageError, match="line 3: not a CSV"):
        Manifest.read(path)


# --- what it prints as ------------------------------------------------------------------------------------------------


def test_a_manifest_prints_as_one_screen(tmp_path: Path) -> None:
    touch(tmp_path, "Training/covid/p1-1.png", "Training/normal/p2-1.png", "Testing/covid/p3-1.png", "Thumbs.db")
    touch(tmp_path, "Testing/normal/p4-1.png", "Testing/normal/p4-2.png", ".DS_Store", "1.txt")
    os.symlink("/etc/hostname", tmp_path / "Testing" / "normal" / "far-1.png")
    outside = "leads out of the folder (`allow_outside` allows it)"
    assert repr(Manifest.read(tmp_path, r"/(p\d+)-")).splitlines() == [
        f"Manifest of {tmp_path}: 6 images",
        "  split: test 4, train 2",
        "  label: covid 2, normal 4",
        "  group: Testing/normal/far-1.png 1, p1 1, p2 1, p3 1, p4 2",
        "  skipped: 2 system files, 1 not an image name",
        f"  refused: 1, for example Testing/normal/far-1.png, which {outside}",
        "  note: Folders were read as subsets: Training as train, Testing as test.",
    ]


def test_a_large_manifest_prints_as_one_screen_too(tmp_path: Path) -> None:
    """Whatever a CSV brings: many classes, long texts, columns with names of lines."""
    columns = {f"column {i}\nof {'x' * 500}": [f"{n} " + "text " * 100 for n in range(300)] for i in range(40)}
    labels = [f"class {n}" for n in range(300)]
    manifest = Manifest(labels, [tmp_path / f"{n}.png" for n in range(300)], {"label": labels, **columns}, tmp_path)
    lines = repr(manifest).splitlines()
    assert lines[1] == "  label: 300 values"
    assert lines[-1] == "  and 33 more columns"
    assert len(lines) == 10
    assert max(map(len, lines)) < 120
