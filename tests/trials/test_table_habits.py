"""Tables as Excel, R, pandas and people write them were refused: index columns, blank rows, semicolons, tabs, UTF-16,
gzip, workbooks, keys of another name. One reader serves every command, and names what it cannot read."""

import gzip
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.errors import UsageError
from featcache.fusion import Studies
from featcache.fusion.writer import export_studies
from featcache.manifest import Manifest
from featcache.specs import FusionSpec, TargetSpec
from featcache.splits.task import Task
from featcache.store import Store
from featcache.tables import formats
from featcache.tables.table import read_table
from tests.conftest import make_store, two_clouds
from tests.test_cli import featcache

N = 8
HEADER = ["image_id", "path", "label", "note"]
ROWS = [[f"image{i:05d}", f"{i}.png", ("cat", "dog")[i % 2], "1,5 mm; äöü"] for i in range(N)]


def written(rows: list[list[str]], delimiter: str = ",", end: str = "\n") -> str:
    quoted = [[f'"{cell}"' if set(",;\t|\n") & set(cell) else cell for cell in row] for row in rows]
    return "".join(delimiter.join(row) + end for row in quoted)


PLAIN = written([HEADER, *ROWS])
TAB = written([HEADER, *ROWS], "\t")
DRESSES: dict[str, tuple[str, bytes]] = {
    "plain": ("t.csv", PLAIN.encode()),
    "semicolons": ("t.csv", written([HEADER, *ROWS], ";").encode()),
    "semicolons unquoted decimals": ("t.csv", written([HEADER, *ROWS], ";").replace('"1,5 mm; äöü"', "1,5").encode()),
    "tabs": ("t.tsv", TAB.encode()),
    "tabs in a .csv": ("t.csv", TAB.encode()),
    "bars": ("t.csv", written([HEADER, *ROWS], "|").encode()),
    "a stated separator": ("t.csv", ("sep=;\r\n" + written([HEADER, *ROWS], ";", "\r\n")).encode()),
    "byte order mark": ("t.csv", ("\ufeff" + PLAIN).encode()),
    "two byte order marks": ("t.csv", ("\ufeff\ufeff" + PLAIN).encode()),
    "UTF-16 of Excel": ("t.csv", TAB.encode("utf-16")),
    "UTF-16 big-endian": ("t.csv", b"\xfe\xff" + PLAIN.encode("utf-16-be")),
    "UTF-16 without a mark": ("t.csv", PLAIN.encode("utf-16-le")),
    "old Mac": ("t.csv", written([HEADER, *ROWS], end="\r").encode()),
    "index of pandas": ("t.csv", written([["", *HEADER], *([str(i), *row] for i, row in enumerate(ROWS))]).encode()),
    "index of pandas, twice": (
        "t.csv",
        written([["", "Unnamed: 0", *HEADER], *([str(i), str(i), *row] for i, row in enumerate(ROWS))]).encode(),
    ),
    "row numbers of R": ("t.csv", written([HEADER, *([str(i), *row] for i, row in enumerate(ROWS, 1))]).encode()),
    "trailing comma in the header": ("t.csv", written([[*HEADER, ""], *ROWS]).encode()),
    "trailing comma in the rows": ("t.csv", written([HEADER, *([*row, ""] for row in ROWS)]).encode()),
    "trailing commas everywhere": ("t.csv", written([[*HEADER, "", ""], *([*row, "", ""] for row in ROWS)]).encode()),
    "blank last rows": ("t.csv", (PLAIN + ",,,\n , ,,\n\n,,,\n").encode()),
    "blank first rows": ("t.csv", (",,,\n\n" + PLAIN).encode()),
    "a title above": ("t.csv", ("Exported 2024,,,\n\n" + PLAIN).encode()),
    "a remark above semicolons": ("t.csv", ("# by a, b, c and d\n" + written([HEADER, *ROWS], ";")).encode()),
    "an end of DOS": ("t.csv", (PLAIN + "\x1a").encode()),
    "gzip": ("t.csv.gz", gzip.compress(PLAIN.encode())),
    "gzip of tabs in UTF-16": ("t.tsv.gz", gzip.compress(TAB.encode("utf-16"))),
    "names in upper case": ("t.csv", PLAIN.replace("image_id,path,label", "Image_ID,Path,LABEL").encode()),
    "blanks around names": ("t.csv", PLAIN.replace("image_id,path,label", " image_id , path, label ").encode()),
}


def store_of(folder: Path, **columns: list[str]) -> Store:
    return Store.open(make_store(folder / "s.h5", two_clouds(N, 4)[0], columns))


def labels(task: Task) -> list[str]:
    return [task.classes[i] if i >= 0 else "" for i in task.labels]


@pytest.mark.parametrize("dress", DRESSES)
def test_a_table_in_any_dress_is_the_same_manifest_and_the_same_labels(tmp_path: Path, dress: str) -> None:
    name, data = DRESSES[dress]
    (tmp_path / name).write_bytes(data)
    manifest = Manifest.read(tmp_path / name)
    assert manifest.image_ids == [row[0] for row in ROWS]
    assert manifest.paths == [tmp_path / row[1] for row in ROWS]
    assert manifest.columns["label"] == ["cat", "dog"] * (N // 2)
    assert manifest.columns["note"][0].startswith("1,5")
    task = Task.of(store_of(tmp_path), TargetSpec(file=tmp_path / name))
    assert labels(task) == ["cat", "dog"] * (N // 2)
    assert not task.left_out


def test_a_cell_of_several_lines_stays_one_in_every_delimiter(tmp_path: Path) -> None:
    for delimiter in formats.DELIMITERS:
        rows = [["study", "findings"], ["1", f"Clear.\nNo effusion{delimiter} no mass."], ["2", 'He said ""no"".']]
        (tmp_path / "r.csv").write_text(written(rows, delimiter).replace("He", '"He').replace('no"".', 'no""."'))
        table = read_table(tmp_path / "r.csv", ("study",))
        assert table.columns["findings"] == [rows[1][1], 'He said "no".']
        assert table.lines == [2, 4]


def test_a_column_without_a_name_that_holds_something_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,,label\n1.png,7,a\n2.png,,b\n")
    manifest = Manifest.read(tmp_path / "t.csv")
    assert set(manifest.columns) == {"label"}
    assert "column 2 has no name and is left away" in manifest.notes[0]


def test_a_cell_too_many_still_shifts_nothing(tmp_path: Path) -> None:
    for rows in ("7,1.png,a\n8,2.png,b\n", "1.png,a,x\n2.png,b,y\n"):
        (tmp_path / "t.csv").write_text("path,label\n" + rows)
        with pytest.raises(UsageError, match="line 2: the number of cells"):
            Manifest.read(tmp_path / "t.csv")


# --- workbooks --------------------------------------------------------------------------------------------------------


def workbook(path: Path, **sheets: list[list[object]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra excel")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook_is_read_as_excel_would_write_it(tmp_path: Path) -> None:
    rows = [[*HEADER, "age", "sure"], *([*row, 7.0, True] for row in ROWS), [None] * 6]
    manifest = Manifest.read(workbook(tmp_path / "t.xlsx", Sheet1=rows))
    assert manifest.columns["label"] == ["cat", "dog"] * (N // 2)
    assert (manifest.columns["age"][0], manifest.columns["sure"][0]) == ("7", "TRUE")
    assert not any("sheet" in note for note in manifest.notes)


def test_a_formula_without_its_value_is_no_empty_cell(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", Sheet1=[["path", "label"], ["1.png", "a"], ["2.png", '=IF(1>0,"a","b")']])
    with pytest.raises(UsageError, match="cell B3: a formula without its value"):
        Manifest.read(path)


def test_the_sheet_with_the_columns_is_read_and_said(tmp_path: Path) -> None:
    path = workbook(tmp_path / "t.xlsx", Notes=[["by", "A. Person"]], Labels=[HEADER, *ROWS])
    task = Task.of(store_of(tmp_path), TargetSpec(file=path))
    assert labels(task) == ["cat", "dog"] * (N // 2)
    assert any("has 2 sheets, and 'Labels' is the one that is read" in note for note in task.notes)


def test_a_workbook_without_openpyxl_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    monkeypatch.setitem(sys.modules, "openpyxl", None)  # as where it is not installed
    with pytest.raises(UsageError, match=r"is an Excel workbook: reading one needs pip install 'featcache\[excel\]'"):
        read_table(tmp_path / "t.xlsx")


def test_a_damaged_workbook_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl", reason="needs the extra excel")
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    with pytest.raises(UsageError, match="is a damaged Excel workbook"):
        read_table(tmp_path / "t.xlsx")


# --- what is no table -------------------------------------------------------------------------------------------------


def zipped(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "x")

    return make


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b'[{"image_id": "1"}]', "JSON"),
        (b'\n {"a": 1}', "JSON"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook of before 2007"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (gzip.compress(b"\x80\x04K\x01.", mtime=0), "a Python pickle"),
        (gzip.compress(gzip.compress(b"a,b\n", mtime=0), mtime=0), "packed with gzip twice"),
        (zipped("labels.csv"), "a ZIP archive"),
        (zipped("word/document.xml"), "a Word document"),
        (gzip.compress(b"a,b\n", mtime=0)[:-9], "damaged gzip"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_named_as_what_it_is(
    tmp_path: Path, content: bytes | Callable[[Path], None], what: str
) -> None:
    path = tmp_path / "labels.csv"
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"labels\.csv is {what}"):
        Task.of(store_of(tmp_path), TargetSpec(file=path))


def test_a_folder_or_a_pipe_is_named_as_what_it_is_and_is_usage(tmp_path: Path) -> None:
    store = store_of(tmp_path, study=["1"] * N)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("folder", "is a folder"), ("pipe", "is a device, a pipe or a socket")):
        with pytest.raises(UsageError, match=what):
            Task.of(store, TargetSpec(file=tmp_path / name))
        with pytest.raises(UsageError, match=what):
            export_studies(store, tmp_path / "f.h5", FusionSpec("study", ("findings",), tmp_path / name))
    done = featcache("train-head", "s.h5", "--labels", "folder", cwd=tmp_path)
    assert (done.returncode, "folder is a folder" in done.stderr) == (2, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to become somebody who may not read")
def test_a_table_that_may_not_be_read_is_a_matter_of_permission(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o700)
    for name in ("file.csv", "locked/inside.csv"):
        (tmp_path / name).write_text(PLAIN)
        (tmp_path / name).chmod(0o600)
    tmp_path.chmod(0o755)
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from featcache import errors\nfrom featcache.tables.table import read_table\n"
        "os.seteuid(65534)\nfor name in sys.argv[1:]:\n"
        "    try: read_table(Path(name))\n    except errors.AccessDenied as error: print(error.exit_code)\n"
    )
    paths = [f"/proc/self/cwd/{name}" for name in ("file.csv", "locked/inside.csv")]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["21", "21"], done.stderr


def test_what_gzip_unpacks_to_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_BYTES", 1 << 20)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"path\n" + b"a,\n" * (1 << 20)))
    with pytest.raises(UsageError, match="has more than 1 MB, unpacked"):
        Manifest.read(tmp_path / "t.csv.gz")
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", b" " * (1 << 21))
    with pytest.raises(UsageError, match="has more than 1 MB, unpacked"):
        read_table(tmp_path / "t.xlsx")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_labels_join_by_a_column_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(PLAIN.replace("image_id", "filename"))
    store = store_of(tmp_path)
    task = Task.of(store, TargetSpec(file=tmp_path / "t.csv", on="image_id=filename"))
    assert labels(task) == ["cat", "dog"] * (N // 2)
    with pytest.raises(UsageError, match=r"no column named image_id .* 'filename' has such keys: join on 'image_id=fi"):
        Task.of(store, TargetSpec(file=tmp_path / "t.csv"))


def test_a_report_that_is_repeated_for_each_image_counts_once(tmp_path: Path) -> None:
    store = store_of(tmp_path, study=[str(i // 2) for i in range(N)])
    rows = [["study", "findings"], *([str(i // 2), f"Report {i // 2}."] for i in range(N))]
    (tmp_path / "r.csv").write_text(written(rows))
    fused = export_studies(store, tmp_path / "f.h5", FusionSpec("study", ("findings",), tmp_path / "r.csv"))
    with Studies(tmp_path / "f.h5") as studies:
        assert studies.text("findings") == [f"Report {i}." for i in range(N // 2)]
    assert fused.coverage["reports"] == N // 2
    assert any("4 rows repeat the report of their study, which counts once" in note for note in fused.notes)
    (tmp_path / "r.csv").write_text(written([*rows, ["3", "Another."]]))
    with pytest.raises(UsageError, match="line 10, column findings: study '3' has another text in line 8"):
        export_studies(store, tmp_path / "g.h5", FusionSpec("study", ("findings",), tmp_path / "r.csv"))
