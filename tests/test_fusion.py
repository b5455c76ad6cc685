"""A fusion file holds every study once, nothing that a head has seen is said by it, and h5py and numpy can read it."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import featcache as package
from featcache import durable
from featcache.errors import CorruptStore, IdentityMismatch, StoreNotFound, UnknownFormat, UntrustedFile, UsageError
from featcache.fusion import Studies, StudyDataset, collate, open_studies
from featcache.fusion.reader import FINAL_HEAD, FOLD_HEADS, NO_HEAD
from featcache.fusion.writer import export_studies
from featcache.heads import inference
from featcache.runs import Run
from featcache.specs import FusionSpec, HeadSpec, SelectionSpec, SplitSpec, TargetSpec
from featcache.store import Part, PartFolder, Store, publish, schema
from featcache.training.train_head import train_head
from tests.conftest import make_store, two_clouds
from tests.test_cli import featcache

N, D = 240, 6
FORMAT = (Path(package.__file__).parent / "FORMAT.md").read_text("utf-8").split("# The fusion file")[1]
SPEC = FusionSpec("uid", ("findings", "impression"))
QUICK = HeadSpec(epochs=1)
Columns = dict[str, list[str]]
HOSTILE = "<img src=x onerror=alert(1)>"
AWKWARD = ['=cmd|"/C calc"!A0, caf\u00e9 \u4e2d\u6587', "two\nlines\r\n, and a third", "  blanks  ", HOSTILE]


def columns_of() -> Columns:
    """Of 240 images 234 are of 90 studies, of 1 to 5 images each, two or three studies a patient."""
    study = sorted((i * 7) % 90 if i >= 90 else i for i in range(N))
    labels = [("normal", "sick")[(each // 3) % 2] for each in study]
    return {
        "uid": [f"s{each}" if i % 40 != 39 else "" for i, each in enumerate(study)],
        "group": [f"p{each // 3}" for each in study],
        "label": labels,
        "split": [("train", "train", "test")[each // 3 % 3] for each in study],
        "projection": [("Frontal", "Lateral")[i % 2] for i in range(N)],
    }


def features_of(columns: Columns) -> np.ndarray:
    x, _ = two_clouds(N, D, seed=3)
    return (x + np.array([[label == "sick"] for label in columns["label"]])).astype(np.float32)


def write_reports(path: Path) -> Path:
    """Of studies s0 to s79 and of ten without an image; some say nothing; in no order."""
    names = [f"s{i}" for i in range(80)] + [f"x{i}" for i in range(10)]
    order = np.random.default_rng(0).permutation(len(names))
    rows = []
    for k, i in enumerate(order):
        findings = "" if i % 7 == 0 else AWKWARD[i] if i < len(AWKWARD) else f"Findings of {names[i]}."
        rows.append({"uid": names[i], "findings": findings, "impression": "" if i % 14 == 0 else f"Nr. {k}"})
    rows.append({"uid": "", "findings": "of nobody", "impression": ""})
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`s.h5`, `reports.csv`, the Runs `folds` and `one` (a hold-out), and `f.h5` of the former. Never to be changed."""
    folder = tmp_path_factory.mktemp("fusion")
    columns = columns_of()
    write_reports(folder / "reports.csv")
    with Store.open(make_store(folder / "s.h5", features_of(columns), columns)) as store:
        folds = train_head(store, QUICK, folder / "folds", split=SplitSpec(n_splits=3))
        train_head(store, QUICK, folder / "one", split=SplitSpec(val_fraction=0.3))
        export_studies(store, folder / "f.h5", replace(SPEC, reports=folder / "reports.csv"), folds)
    return folder


@pytest.fixture
def store(folder: Path) -> Any:
    with Store.open(folder / "s.h5") as store:
        yield store


def asked(folder: Path, **changes: Any) -> FusionSpec:
    return replace(SPEC, reports=folder / "reports.csv", **changes)


def rows_of(store: Store) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, uid in enumerate(store.columns["uid"]):
        if uid:
            found.setdefault(uid, []).append(i)
    return found


# --- studies ----------------------------------------------------------------------------------------------------------


def test_every_study_is_there_once_with_all_its_images_and_texts(folder: Path, store: Store) -> None:
    x, rows = store.features(), rows_of(store)
    reports = pd.read_csv(folder / "reports.csv", dtype=str, keep_default_na=False).set_index("uid")
    with open_studies(folder / "f.h5") as studies:
        assert len(studies) == len(set(studies.study_ids)) == 100
        assert set(studies.study_ids) == set(rows) | set(reports.index) - {""}
        vectors, mask = studies.vectors(), studies.image_mask
        assert vectors.shape == (100, max(map(len, rows.values())), D)
        assert vectors.dtype == np.float32
        for i, name in enumerate(studies.study_ids):
            held = rows.get(name, [])
            assert mask[i].tolist() == [True] * len(held) + [False] * (mask.shape[1] - len(held))
            assert np.array_equal(vectors[i, : len(held)], x[held])
            assert not vectors[i, len(held) :].any()
            for text in ("findings", "impression"):
                said = reports.loc[name, text].strip() if name in reports.index else ""
                assert studies.text(text)[i] == said == studies[i].texts[text]
        assert AWKWARD[1] in studies.text("findings")
        assert studies.has_image.tolist() == [name in rows for name in studies.study_ids]
        said = (reports.findings + reports.impression).str.strip() != ""
        assert studies.has_text.tolist() == [bool(said.get(name, False)) for name in studies.study_ids]
        assert studies.verify() == len(studies.datasets_sha256)


def test_coverage_is_what_pandas_counts(folder: Path, store: Store) -> None:
    reports = pd.read_csv(folder / "reports.csv", dtype=str, keep_default_na=False)
    images = pd.DataFrame({"uid": store.columns["uid"]})
    both = reports[reports.uid != ""].merge(images[images.uid != ""].drop_duplicates(), how="outer", indicator=True)
    text = (both.findings.fillna("").str.strip() + both.impression.fillna("").str.strip()) != ""
    image = both._merge != "left_only"
    with open_studies(folder / "f.h5") as studies:
        coverage = studies.about["coverage"]
    assert coverage["studies"] == coverage["kept"] == len(both)
    assert coverage["with_image_and_text"] == int((text & image).sum())
    assert coverage["without_text"] == int((~text & image).sum())
    assert coverage["without_image"] == int((text & ~image).sum())
    assert coverage["without_both"] == int((~text & ~image).sum())
    assert coverage["images"] == int((images.uid != "").sum()) == 234
    assert coverage["images_without_study"] == int((images.uid == "").sum()) == 6
    assert coverage["reports"] == len(reports)
    assert coverage["reports_without_study"] == 1
    assert coverage["most_images_of_a_study"] == int(images[images.uid != ""].uid.value_counts().max())
    assert coverage["texts"] == {name: int((both[name].fillna("") != "").sum()) for name in SPEC.texts}


def test_images_say_which_they_are(folder: Path, store: Store) -> None:
    with open_studies(folder / "f.h5") as studies:
        images, vectors = studies.images, studies.vectors()
    assert len(images["image_id"]) == 234
    row, content = {name: i for i, name in enumerate(store.image_ids)}, store.content_sha256
    rows, projection = [row[name] for name in images["image_id"]], store.columns["projection"]
    assert np.array_equal(vectors[images["study"], images["view"]], store.features()[rows])
    assert images["content_sha256"] == [content[i] for i in rows]
    assert images["columns"]["projection"] == [projection[i] for i in rows]


def test_columns_on_which_the_images_of_a_study_agree_are_its_own(folder: Path, store: Store) -> None:
    rows, columns = rows_of(store), store.columns
    with open_studies(folder / "f.h5") as studies:
        assert set(studies.columns) == {"label", "group", "split"}
        for i, name in enumerate(studies.study_ids):
            for column, values in studies.columns.items():
                assert values[i] == (columns[column][rows[name][0]] if name in rows else "")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("pool", ["views", "mean", "first"])
def test_images_of_a_study_are_kept_or_averaged_or_the_first_is_taken(dtype: str, pool: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((9, 3)).astype(dtype)
    grid = np.random.default_rng(1).standard_normal((9, 3, 2, 4)).astype(dtype)
    path = store_with_maps(tmp_path / "s.h5", x, grid, ["b", "a", "", "b", "c", "a", "b", "d", "d"])
    with Store.open(path) as store:
        spec = FusionSpec("uid", pool=pool, tokens=pool != "mean")
        done = export_studies(store, tmp_path / "f.h5", spec)
    rows = [[0, 3, 6], [1, 5], [4], [7, 8]]
    with open_studies(done.path) as studies:
        assert studies.study_ids == ["b", "a", "c", "d"]
        vectors, mask = studies.vectors(), studies.image_mask
        if pool == "mean":
            np.testing.assert_allclose(vectors, [x[r].astype(np.float64).mean(axis=0) for r in rows], rtol=1e-6)
            assert mask.all()
            with pytest.raises(UsageError, match="no tokens"):
                studies.tokens()
            return
        tokens, places = studies.tokens(), np.moveaxis(grid.reshape(9, 3, 8), 1, 2)
        assert studies.token_shape == (8, 3)
        if pool == "first":
            assert np.array_equal(vectors, x[[0, 1, 4, 7]])
            assert np.array_equal(tokens, places[[0, 1, 4, 7]])
            assert studies[1].tokens.shape == (1, 8, 3)
        else:
            assert mask.tolist() == [[True] * 3, [True, True, False], [True, False, False], [True, True, False]]
            for i, held in enumerate(rows):
                assert np.array_equal(studies[i].vectors, x[held])
                assert np.array_equal(studies[i].tokens, places[held])
                assert not tokens[i, len(held) :].any()
    with h5py.File(done.path) as file:
        if pool != "mean":
            assert file["image_vectors"].dtype == dtype
            assert file["image_vectors"].chunks == (1, *file["image_vectors"].shape[1:])


def store_with_maps(path: Path, x: np.ndarray, grid: np.ndarray, uids: list[str]) -> Path:
    parts, n = PartFolder(path, {"identity": {"made": "for a test"}}), len(x)
    with parts.locked():
        content = [f"{i:064x}" for i in range(n)]
        parts.write(Part(0, {"pooled": x, "grid": grid}, content, np.zeros(n, dtype=np.uint8), {}))
        publish(path, parts.heads(), [f"{i}.png" for i in range(n)], {"uid": uids}, {"made": "for a test"})
        parts.clear()
    return path


def test_channels_may_be_the_last_axis_of_a_map_and_places_the_first(tmp_path: Path) -> None:
    x = np.zeros((2, 5), dtype=np.float32)
    last, places = (
        np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32) for shape in [(2, 3, 5), (4, 5)]
    )
    for grid in (last, places):
        with Store.open(store_with_maps(tmp_path / "s.h5", x, grid, ["a", "b"])) as store:
            export_studies(store, tmp_path / "f.h5", FusionSpec("uid", tokens=True))
        with open_studies(tmp_path / "f.h5") as studies:
            assert np.array_equal(studies.tokens()[:, 0], grid.reshape(2, -1, 5))


def test_only_complete_studies_are_kept_if_asked(folder: Path, store: Store, tmp_path: Path) -> None:
    done = export_studies(store, tmp_path / "f.h5", asked(folder, complete=True))
    with open_studies(done.path) as studies, open_studies(folder / "f.h5") as every:
        assert (studies.has_image & studies.has_text).all()
        assert len(studies) == done.coverage["kept"] == int((every.has_image & every.has_text).sum())
        assert studies.about["coverage"]["studies"] == len(every)


def test_texts_may_be_columns_of_the_store(tmp_path: Path) -> None:
    columns = {"uid": ["a", "a", "b"], "findings": ["clear", "clear", ""], "view": ["PA", "L", "PA"]}
    with Store.open(make_store(tmp_path / "s.h5", np.ones((3, 2)), columns)) as store:
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid", ("findings",)))
    with open_studies(tmp_path / "f.h5") as studies:
        assert studies.text("findings") == ["clear", ""]
        assert studies.has_text.tolist() == [True, False]
    columns["findings"][1] = "opacity"
    with (
        Store.open(make_store(tmp_path / "s2.h5", np.ones((3, 2)), columns)) as store,
        pytest.raises(UsageError, match="uid 'a' have different texts as findings"),
    ):
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid", ("findings",)))


def test_a_label_on_which_images_of_a_study_differ_is_unknown_and_counted(tmp_path: Path) -> None:
    columns = {"uid": ["a", "a", "b", "c"], "label": ["sick", "normal", "sick", ""]}
    with Store.open(make_store(tmp_path / "s.h5", np.ones((4, 2)), columns)) as store:
        done = export_studies(store, tmp_path / "f.h5", FusionSpec("uid"))
    assert done.coverage["conflicts"] == {"label": 1}
    with open_studies(done.path) as studies:
        assert studies.columns["label"] == ["", "sick", ""]


# --- what may not be on two sides -------------------------------------------------------------------------------------


def test_a_study_on_two_sides_is_refused_and_the_first_five_are_named(tmp_path: Path) -> None:
    columns = {"uid": [f"s{i // 2}" for i in range(20)], "split": ["train", "test"] * 10}
    with (
        Store.open(make_store(tmp_path / "s.h5", np.ones((20, 2)), columns)) as store,
        pytest.raises(UsageError, match="10 studies, or sets of studies") as caught,
    ):
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid"))
    assert re.findall(r"'s\d' \(train\) and 's\d' \(test\)", str(caught.value)) == [
        f"'s{i}' (train) and 's{i}' (test)" for i in range(5)
    ]
    assert not (tmp_path / "f.h5").exists()


@pytest.mark.parametrize("shared", ["group", "content"])
def test_studies_of_one_patient_or_with_one_image_are_one_group(shared: str, tmp_path: Path) -> None:
    columns = {"uid": ["a", "a", "b", "c", ""], "split": ["train", "train", "train", "test", ""]}
    columns |= {"group": ["p", "p", "p", "q", ""]} if shared == "group" else {}
    content = [f"{i:064x}" for i in (0, 1, 1 if shared == "content" else 2, 3, 4)]
    with Store.open(make_store(tmp_path / "s.h5", np.ones((5, 2)), columns, content)) as store:
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid"))
    with open_studies(tmp_path / "f.h5") as studies:
        a, b, c = studies.group_numbers.tolist()
        assert a == b != c
        assert studies.columns["split"] == ["train", "train", "test"]
    columns["split"][2] = "test"
    with (
        Store.open(make_store(tmp_path / "s2.h5", np.ones((5, 2)), columns, content)) as store,
        pytest.raises(UsageError, match=r"'a' \(train\) and 'b' \(test\)"),
    ):
        export_studies(store, tmp_path / "g.h5", FusionSpec("uid"))


def test_a_study_of_several_patients_is_refused(tmp_path: Path) -> None:
    columns = {"uid": ["a", "a", "b"], "group": ["p", "q", "p"]}
    with (
        Store.open(make_store(tmp_path / "s.h5", np.ones((3, 2)), columns)) as store,
        pytest.raises(UsageError, match=r"1 studies have images of several groups .* the first 'a'"),
    ):
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid"))


def test_no_group_is_on_two_sides_of_the_file(folder: Path) -> None:
    with open_studies(folder / "f.h5") as studies:
        table = pd.DataFrame({"group": studies.group_numbers, "split": studies.columns["split"]})
    known = table[table.split != ""]
    assert set(known.split) == {"train", "test"}
    assert (known.groupby("group").split.nunique() == 1).all()


# --- logits by heads that have not seen a study -----------------------------------------------------------------------


def test_a_study_is_judged_only_by_heads_that_have_not_seen_it(folder: Path, store: Store) -> None:
    """Every study again, from the Run's own files: names of rows, weights of heads."""
    run, x, rows = Run.open(folder / "folds"), store.features(), rows_of(store)
    row = {name: i for i, name in enumerate(store.image_ids)}
    names, protocol = run.images().image_ids, run.protocol()
    seen_by = [
        ({row[names[i]] for i in fold.train}, head)
        for fold, head in zip(protocol.folds, run.fold_weights(), strict=True)
    ]
    test = {row[names[i]] for i in protocol.test}
    with open_studies(folder / "f.h5") as studies:
        assert studies.classes == ["normal", "sick"]
        for i, name in enumerate(studies.study_ids):
            held = rows.get(name, [])
            if not held:
                assert studies.logits_head[i] == NO_HEAD
                assert np.isnan(studies.logits[i]).all()
                assert studies[i].logits is None
                continue
            heads = [run.weights()] if set(held) <= test else [h for seen, h in seen_by if not seen & set(held)]
            assert len(heads) == 1
            wanted = inference.logits(run.spec, heads[0], x[held], 2, 1).mean(axis=0)
            np.testing.assert_allclose(studies.logits[i], wanted, rtol=1e-5, atol=1e-6)
            assert studies.logits_head[i] == (FINAL_HEAD if set(held) <= test else FOLD_HEADS)
            assert (studies.folds[i] == -1) == (set(held) <= test)
        assert (studies.columns["split"].count("test"), studies.columns["split"].count("train")) == (30, 60)
        assert np.array_equal(studies.logits_mask, studies.has_image)
        assert studies.about["coverage"]["logits"] == {"by_final_head": 30, "by_fold_heads": 60, "none": 10}


@pytest.mark.parametrize("poison", ["labels", "vectors"])
def test_what_a_study_says_of_itself_has_no_part_in_its_own_logits(
    poison: str, folder: Path, store: Store, tmp_path: Path
) -> None:
    """A study whose labels are turned, or whose vectors are ruined, and heads trained again on the same folds: what is
    said of it as it was is the same, bit for bit, and what is said of the others is not."""
    columns, x = columns_of(), features_of(columns_of())
    for i in (i for i, uid in enumerate(columns["uid"]) if uid == "s4"):
        if poison == "labels":
            columns["label"][i] = {"normal": "sick", "sick": "normal"}[columns["label"][i]]
        else:
            x[i] = 100 + i
    with Store.open(make_store(tmp_path / "s.h5", x, columns)) as changed:
        run = train_head(changed, QUICK, tmp_path / "run", split=SplitSpec(file=folder / "folds" / "split.json"))
    export_studies(store, tmp_path / "f.h5", asked(folder), run)
    with open_studies(folder / "f.h5") as before, open_studies(tmp_path / "f.h5") as after:
        assert before.study_ids == after.study_ids
        (same,) = (i for i, name in enumerate(before.study_ids) if name == "s4")
        others = (before.folds != before.folds[same]) & (before.folds >= 0)
        assert (before.columns["label"][same] != after.columns["label"][same]) == (poison == "labels")
        assert before.logits[same].tobytes() == after.logits[same].tobytes()
        assert (before.logits[others] != after.logits[others]).all()


def test_a_hold_out_has_logits_of_its_held_and_test_rows_alone(folder: Path, store: Store, tmp_path: Path) -> None:
    export_studies(store, tmp_path / "f.h5", asked(folder), Run.open(folder / "one"))
    with open_studies(tmp_path / "f.h5") as studies:
        split = np.array(studies.columns["split"])
        assert set(split) == {"train", "val", "test", ""}
        assert np.array_equal(studies.logits_mask, np.isin(split, ["val", "test"]))
        assert set(studies.logits_head[studies.logits_mask]) == {FINAL_HEAD}
        assert np.array_equal(studies.folds >= 0, split == "val")


def test_a_head_trained_on_all_rows_says_only_what_test_rows_are(folder: Path, store: Store, tmp_path: Path) -> None:
    how = {"split": SplitSpec(val_fraction=0.3), "report": SelectionSpec(refit_all=True)}
    run = train_head(store, QUICK, tmp_path / "run", **how)
    export_studies(store, tmp_path / "f.h5", asked(folder), run)
    with open_studies(tmp_path / "f.h5") as studies:
        assert np.array_equal(studies.logits_mask, np.array(studies.columns["split"]) == "test")


def test_folds_that_divide_a_study_leave_it_without_logits(tmp_path: Path) -> None:
    """The Run knew of no studies: with three folds the images of nearly each are in several."""
    columns = {"uid": [f"s{i // 8}" for i in range(96)], "label": ["normal", "sick"] * 48}
    with Store.open(make_store(tmp_path / "s.h5", two_clouds(96, 4)[0], columns)) as store:
        run = train_head(store, QUICK, tmp_path / "run", split=SplitSpec(n_splits=3))
        done = export_studies(store, tmp_path / "f.h5", FusionSpec("uid"), run)
    assert done.coverage["logits"] == {"by_final_head": 0, "by_fold_heads": 0, "none": 12}
    with open_studies(done.path) as studies:
        assert np.isnan(studies.logits).all()
        assert not studies.logits_mask.any()
        assert (studies.folds == -1).all()


def test_repeated_folds_and_findings_and_views_are_averaged(tmp_path: Path) -> None:
    labels = {f"f{c}": [("", "0", "1")[(i // 2 + c) % 3] for i in range(96)] for c in range(2)}
    columns = {"uid": [f"s{i // 2}" for i in range(96)], "group": [f"s{i // 2}" for i in range(96)], **labels}
    with Store.open(make_store(tmp_path / "s.h5", two_clouds(96, 4)[0], columns)) as store:
        target, split = TargetSpec(("f0", "f1")), SplitSpec(n_splits=2, n_repeats=3)
        run = train_head(store, QUICK, tmp_path / "run", target=target, split=split)
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid"), run)
        x, row = store.features(), {name: i for i, name in enumerate(store.image_ids)}
    names, folds = run.images().image_ids, run.protocol().folds
    with open_studies(tmp_path / "f.h5") as studies:
        assert studies.classes == ["f0", "f1"]
        assert studies.columns["f0"] == labels["f0"][::2]
        held = [0, 1]
        heads = [
            head
            for fold, head in zip(folds, run.fold_weights(), strict=True)
            if not {row[names[i]] for i in fold.train} & set(held)
        ]
        assert len(heads) == 3
        wanted = np.mean([inference.logits(run.spec, head, x[held], 2, 1) for head in heads], axis=(0, 1))
        np.testing.assert_allclose(studies.logits[0], wanted, rtol=1e-5)


def test_a_run_of_other_vectors_or_images_is_refused(folder: Path, tmp_path: Path) -> None:
    run, columns = Run.open(folder / "folds"), columns_of()
    path = make_store(tmp_path / "s.h5", features_of(columns), columns, content=[f"{i + 7:064x}" for i in range(N)])
    with Store.open(path) as other, pytest.raises(UsageError, match=r"240 image\(s\) that .* with other bytes"):
        export_studies(other, tmp_path / "f.h5", SPEC, run)
    record = json.loads((folder / "folds" / "run.json").read_text())
    record["store"]["identity"] = {"made": "by another network"}
    shutil.copytree(folder / "folds", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with Store.open(folder / "s.h5") as store, pytest.raises(IdentityMismatch, match="made: for a test here"):
        export_studies(store, tmp_path / "f.h5", SPEC, Run.open(tmp_path / "run"))
    assert not (tmp_path / "f.h5").exists()


# --- what cannot be joined --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uid,findings,impression\ns1,a,b\ns1,b,\n", "line 3, column findings: uid 's1' has another text in line 2"),
        ("uid,findings\ns1,a\n", "no column named impression"),
        ("uid,findings,impression\ns1,a\n", "line 2: the number of cells"),
        ("uid,findings,impression\nS1,a,b\n", "no uid of .* is a uid of .* has 'S1', the images 's0'"),
        ("uid,findings,impression\ns1,a\0,b\n", "line 2.*zero byte"),
        ("uid,findings,impression\ns1,\xff,b\n", "not UTF-8"),
        ("", "no column named uid"),
    ],
)
def test_reports_that_cannot_be_joined_are_refused_with_the_line(
    text: str, said: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "r.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=f"(?s){said}"):
        export_studies(store, tmp_path / "f.h5", replace(SPEC, reports=tmp_path / "r.csv"))


def test_reports_may_call_the_key_otherwise(store: Store, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("study,findings,impression,\ns1,clear,none,\n")
    export_studies(store, tmp_path / "f.h5", replace(SPEC, reports=tmp_path / "r.csv", on="study"))
    with open_studies(tmp_path / "f.h5") as studies:
        assert studies.study_ids[0] == "s1"
        assert studies.text("findings")[0] == "clear"


@pytest.mark.parametrize(
    "wrong",
    [
        {"pool": "max"}, {"pool": "mean", "tokens": True}, {"texts": ("a", "a")}, {"texts": ("a/b",)}, {"on": "uid"},
        {"texts": (), "reports": Path("r.csv")},
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused_at_birth(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pool|maps|texts|reports"):
        replace(SPEC, **wrong)


def test_what_is_not_there_is_refused(store: Store, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column 'study_id'; it has image_id, "):
        export_studies(store, tmp_path / "f.h5", FusionSpec("study_id"))
    with pytest.raises(UsageError, match="no column 'findings'"):
        export_studies(store, tmp_path / "f.h5", SPEC)
    with pytest.raises(UsageError, match="no feature maps"):
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid", tokens=True))
    with pytest.raises(UsageError, match="no earlier fusion file"):
        export_studies(store, folder / "s.h5", FusionSpec("uid"))
    with pytest.raises(UsageError, match=r"ends with \.h5"):
        export_studies(store, tmp_path / "f.npz", FusionSpec("uid"))


def test_a_file_that_would_be_all_padding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.fusion import writer

    monkeypatch.setattr(writer, "_MAX_PADDING", (4, 1000))
    columns = {"uid": ["a"] * 50 + [f"b{i}" for i in range(50)]}
    with Store.open(make_store(tmp_path / "s.h5", np.ones((100, 4)), columns)) as store:
        with pytest.raises(UsageError, match="study 'a' has 50 images"):
            export_studies(store, tmp_path / "f.h5", FusionSpec("uid"))
        assert export_studies(store, tmp_path / "f.h5", FusionSpec("uid", pool="mean")).n_studies == 51


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_same_studies_are_the_same_bytes_however_they_were_blocked(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.fusion import writer

    monkeypatch.setattr(writer, "_BLOCK_BYTES", 1000)
    export_studies(store, tmp_path / "f.h5", asked(folder), Run.open(folder / "folds"))
    assert (tmp_path / "f.h5").read_bytes() == (folder / "f.h5").read_bytes()
    export_studies(store, tmp_path / "f.h5", asked(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]


def test_a_full_disk_leaves_the_file_that_was_there(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "f.h5", tmp_path / "f.h5")
    real, calls = durable.write_all, []

    def full(file: Any, data: bytes) -> None:
        calls.append(len(data))
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real(file, data)

    monkeypatch.setattr(durable, "write_all", full)
    with pytest.raises(package.FeatcacheError, match="no space: writing"):
        export_studies(store, tmp_path / "f.h5", asked(folder))
    assert (tmp_path / "f.h5").read_bytes() == (folder / "f.h5").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["f.h5"]


def test_the_format_names_everything_in_the_file(folder: Path, tmp_path: Path) -> None:
    path = store_with_maps(tmp_path / "s.h5", np.float32([[1], [2]]), np.zeros((2, 1, 2, 2), "f4"), ["a", "b"])
    with Store.open(path) as store:
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid", tokens=True))
    table = FORMAT.split("## How things are kept in it")[0]
    attributes = set(
        re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| `/` attribute ((?:`\w+`(?:, )?)+)", table, re.M)))
    )
    objects = set(re.findall(r"`/(\w[\w/]*)`", " ".join(re.findall(r"^\| ((?:`/\w[\w/]*`(?:, )?)+)", table, re.M))))
    held: set[str] = set()
    for each in (folder / "f.h5", tmp_path / "f.h5"):
        with h5py.File(each) as file:
            assert set(file.attrs) == attributes
            file.visititems(lambda name, thing: held.add(name) if isinstance(thing, h5py.Dataset) else None)
            assert set(json.loads(file.attrs["about"])) == {"by", "pool", "texts", "store", "run", "coverage"}
    groups = {name.removesuffix("NAME") for name in objects if name.endswith("NAME")}
    found = {next((f"{group}NAME" for group in groups if name.startswith(group)), name) for name in held}
    assert found == objects


def test_arrays_are_kept_as_the_format_says(folder: Path) -> None:
    def check(name: str, thing: Any) -> None:
        if isinstance(thing, h5py.Dataset) and len(thing):
            assert thing.fletcher32, name
            assert thing.compression is None, name
            assert not h5py.check_vlen_dtype(thing.dtype), name
            assert thing.dtype.kind != "f" or np.isnan(thing.fillvalue), name

    with h5py.File(folder / "f.h5") as file:
        file.visititems(check)
        assert tuple(file.attrs["format_version"]) == (1, 0)


def test_the_example_of_the_format_reads_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(folder / "f.h5", tmp_path / "fusion.h5")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(FORMAT.split("```python\n")[1].split("```")[0], names)
    with open_studies(folder / "f.h5") as studies:
        assert names["names"] == studies.study_ids
        assert names["findings"] == studies.text("findings")
        assert np.array_equal(names["vectors"], studies.vectors())
        assert np.array_equal(names["mask"], studies.image_mask)
        assert np.array_equal(names["groups"], studies.group_numbers)


# --- strangers and damage ---------------------------------------------------------------------------------------------


def replaced(file: h5py.File, name: str, **options: Any) -> None:
    values = file[name][:]
    del file[name]
    file.create_dataset(name, **{"data": values, **options})


def external_link(file: h5py.File, secret: Path) -> None:
    del file["image_vectors"]
    file["image_vectors"] = h5py.ExternalLink(str(secret), "/x")


def soft_link_in_texts(file: h5py.File, secret: Path) -> None:
    file["text_bytes/more"] = h5py.SoftLink("/text_bytes/findings")


def external_storage(file: h5py.File, secret: Path) -> None:
    shape = file["image_vectors"].shape
    del file["image_vectors"]
    size = int(np.prod(shape)) * 4
    file.create_dataset("image_vectors", shape=shape, dtype="f4", external=[(str(secret), 0, size)])


def compressed_text(file: h5py.File, secret: Path) -> None:
    replaced(file, "text_bytes/findings", compression="gzip", fletcher32=True)


def names_of_variable_length(file: h5py.File, secret: Path) -> None:
    replaced(file, "study_id", data=[f"{i}" for i in range(100)], dtype=h5py.string_dtype())


def a_mask_of_references(file: h5py.File, secret: Path) -> None:
    shape = file["image_mask"].shape
    del file["image_mask"]
    file.create_dataset("image_mask", shape=shape, dtype=h5py.ref_dtype, chunks=shape, fletcher32=True)


def more_rows_than_bytes(file: h5py.File, secret: Path) -> None:
    del file["logits"]
    file.create_dataset("logits", shape=(10**12, 2), dtype="f4", chunks=(64, 2), fletcher32=True)


STRANGERS = [
    external_link, soft_link_in_texts, external_storage, compressed_text, names_of_variable_length,
    a_mask_of_references, more_rows_than_bytes,
]  # fmt: skip


@pytest.mark.parametrize("craft", STRANGERS, ids=lambda craft: craft.__name__)
def test_a_file_that_asks_for_more_than_reading_is_refused(
    craft: Callable[[h5py.File, Path], None], folder: Path, tmp_path: Path
) -> None:
    path, secret = Path(shutil.copy(folder / "f.h5", tmp_path)), tmp_path / "secret"
    secret.write_bytes(os.urandom(1 << 16))
    with h5py.File(path, "r+") as file:
        craft(file, secret)
    with pytest.raises(UntrustedFile):
        open_studies(path)


def test_what_is_no_fusion_file_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFound, match=r"featcache export-studies STORE\.h5"):
        open_studies(tmp_path / "gone.h5")
    with pytest.raises(UnknownFormat, match="not a featcache fusion file"):
        open_studies(folder / "s.h5")
    with pytest.raises(UnknownFormat, match="not a featcache store"):
        Store.open(folder / "f.h5")
    path = Path(shutil.copy(folder / "f.h5", tmp_path))
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.array([1, 9])
        file["something_new"] = [1]
    assert len(open_studies(path)) == 100
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.array([2, 0])
    with pytest.raises(UnknownFormat, match=r"format 2\.0; this featcache reads 1\.x"):
        open_studies(path)


@pytest.mark.parametrize("name", ["image_vectors", "study_id", "text_bytes/findings", "logits", "images/study"])
def test_a_changed_byte_is_found(name: str, folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "f.h5").read_bytes())
    with h5py.File(folder / "f.h5") as file:
        data[file[name].id.get_chunk_info(0).byte_offset + 1] ^= 1
    (tmp_path / "f.h5").write_bytes(data)
    with pytest.raises(CorruptStore, match=name):
        open_studies(tmp_path / "f.h5").verify()


def test_vectors_that_were_never_written_are_damage(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(folder / "f.h5", tmp_path))
    with h5py.File(path, "r+") as file:
        shape = file["image_vectors"].shape
        del file["image_vectors"]
        schema.create_rows(file, "image_vectors", shape, np.dtype(np.float32))
    with open_studies(path) as studies, pytest.raises(CorruptStore, match=r"image_vectors .* not finite in row 7"):
        studies[7]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("image_mask", np.ones((100, 2), dtype=np.uint8)),
        ("group_number", np.arange(99)),
        ("text_offsets/findings", np.arange(101)),
        ("logits", np.zeros((100, 3), dtype=np.float32)),
        ("images/view", np.zeros(3, dtype=np.int64)),
    ],
)
def test_arrays_that_do_not_fit_together_are_damage(name: str, values: Any, folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(folder / "f.h5", tmp_path))
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        replaced(file, name, data=values, chunks=values.shape, fletcher32=True)
    with pytest.raises(CorruptStore):
        open_studies(path).text("findings")


# --- torch ------------------------------------------------------------------------------------------------------------


def test_a_batch_has_all_of_its_studies_padded_and_masked(folder: Path) -> None:
    dataset = StudyDataset(folder / "f.h5")
    with open_studies(folder / "f.h5") as studies:
        vectors, mask = studies.vectors(), studies.image_mask
        (batch,) = DataLoader(dataset, batch_size=100, collate_fn=collate)
        assert batch["study_id"] == studies.study_ids
        assert np.array_equal(batch["vectors"].numpy(), vectors)
        assert np.array_equal(batch["image_mask"].numpy(), mask)
        assert batch["texts"]["findings"] == studies.text("findings")
        assert np.array_equal(batch["group_number"].numpy(), studies.group_numbers)
        assert np.array_equal(batch["logits_mask"].numpy(), studies.logits_mask)
        np.testing.assert_array_equal(batch["logits"].numpy(), studies.logits)
        names = [dataset.classes[i] if i >= 0 else "" for i in batch["label"].tolist()]
        assert names == studies.columns["label"]
    assert dataset.classes == ["normal", "sick"]


def test_a_batch_is_as_wide_as_its_widest_study_and_one_at_least(folder: Path) -> None:
    with open_studies(folder / "f.h5") as studies:
        n = studies.image_mask.sum(axis=1)
    none, two = np.flatnonzero(n == 0)[:2].tolist(), np.flatnonzero(n == 2)[:1].tolist()
    dataset = StudyDataset(folder / "f.h5", rows=none)
    batch = collate([dataset[0], dataset[1]])
    assert batch["vectors"].shape == (2, 1, D)
    assert not batch["image_mask"].any()
    batch = collate([StudyDataset(folder / "f.h5", rows=none + two)[i] for i in range(3)])
    assert batch["image_mask"].tolist() == [[False, False], [False, False], [True, True]]


def test_tokens_are_padded_as_vectors_are(tmp_path: Path) -> None:
    x, grid = np.ones((3, 4), dtype=np.float32), np.arange(96, dtype=np.float32).reshape(3, 4, 2, 4)
    with Store.open(store_with_maps(tmp_path / "s.h5", x, grid, ["a", "a", "b"])) as store:
        export_studies(store, tmp_path / "f.h5", FusionSpec("uid", tokens=True))
    dataset = StudyDataset(tmp_path / "f.h5")
    batch = collate([dataset[0], dataset[1]])
    assert batch["tokens"].shape == (2, 2, 8, 4)
    assert torch.equal(batch["tokens"][1, 0, 5], torch.from_numpy(grid[2].reshape(4, 8)[:, 5]))
    assert not batch["tokens"][1, 1].any()
    assert batch["label"].tolist() == [-1, -1]
    assert "logits" not in batch


def test_a_dataset_goes_to_other_processes_and_classes_may_be_given(folder: Path) -> None:
    dataset = StudyDataset(folder / "f.h5", rows=[5, 7], classes=["sick", "normal"])
    again = pickle.loads(pickle.dumps(dataset))
    assert again[1]["study_id"] == dataset[1]["study_id"] == dataset.studies.study_ids[7]
    assert torch.equal(again[1]["vectors"], dataset[1]["vectors"])
    with pytest.raises(UsageError, match="label 'sick' is not one of normal"):
        StudyDataset(folder / "f.h5", classes=["normal"])
    loader = DataLoader(StudyDataset(folder / "f.h5"), batch_size=50, num_workers=1, collate_fn=collate)
    assert [name for batch in loader for name in batch["study_id"]] == dataset.studies.study_ids


# --- without the rest -------------------------------------------------------------------------------------------------


def test_reading_studies_imports_nothing_but_h5py_and_numpy(folder: Path) -> None:
    code = (
        "import sys\n"
        "from featcache.fusion import open_studies\n"
        "with open_studies(sys.argv[1]) as studies:\n"
        "    studies.vectors(), studies.text('findings'), studies[0], studies.logits\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "heavy = {'torch', 'timm', 'sklearn', 'scipy', 'pandas', 'matplotlib', 'PIL', 'safetensors', 'typer'} & names\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "f.h5")], check=True)


@pytest.mark.long
def test_h5py_and_numpy_are_all_that_a_reader_needs(folder: Path, tmp_path: Path) -> None:
    """The wheel without its dependencies in an environment of its own reads a store and a fusion file."""
    uv, root = Path(sys.executable).with_name("uv"), Path(package.__file__).parents[1]
    if not uv.exists() or not (root / "pyproject.toml").exists():
        pytest.skip("there is no uv beside this Python, or no source tree, to make a wheel with")
    python = tmp_path / "venv" / "bin" / "python"
    for command in (
        ["build", "-q", "--wheel", "--out-dir", tmp_path, root],
        ["venv", "-q", "--python", sys.executable, tmp_path / "venv"],
        ["pip", "install", "-q", "--python", python, "h5py", "numpy"],
    ):
        done = subprocess.run([uv, *map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"uv {command[0]} has no network and nothing cached: {done.stderr.strip().splitlines()[-1]}")
    wheel = next(tmp_path.glob("*.whl"))
    subprocess.run([uv, "pip", "install", "-q", "--python", python, "--no-deps", wheel], check=True)
    code = (
        "import sys, featcache\n"
        "from featcache.fusion import open_studies\n"
        "with featcache.Store.open(sys.argv[1]) as store: assert store.features().shape == (240, 6)\n"
        "with open_studies(sys.argv[2]) as studies:\n"
        "    assert studies.vectors().shape[0] == len(studies.text('findings')) == studies.logits.shape[0] == 100\n"
        "    studies.verify()\n"
        "import importlib.metadata as m; print(sorted(d.name.lower() for d in m.distributions()))\n"
    )
    command = [python, "-c", code, folder / "s.h5", folder / "f.h5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": "/usr/bin"})
    assert {"h5py", "numpy", "featcache"} == set(json.loads(done.stdout.replace("'", '"'))) - {"pip", "setuptools"}


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_function_writes(folder: Path, tmp_path: Path) -> None:
    arguments = ("export-studies", folder / "s.h5", "-o", "f.h5", "--by", "uid", "--reports", folder / "reports.csv")
    arguments += ("--text", "findings", "--text", "impression", "--run", folder / "folds", "--json")
    done = featcache(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.h5").read_bytes() == (folder / "f.h5").read_bytes()
    answer = json.loads(done.stdout)
    assert answer["studies"] == 100
    assert answer["coverage"]["images_without_study"] == 6
    assert re.search(r"images without study +6\n", done.stderr)
    assert re.search(r"logits by fold heads +60\n", done.stderr)


def test_names_do_nothing_on_a_terminal(tmp_path: Path) -> None:
    columns = {"uid": ["[red]a[/]\x1b[2J", "b"], "split": ["train", "test"], "group": ["p", "p"]}
    make_store(tmp_path / "s.h5", np.ones((2, 2)), columns)
    done = featcache("export-studies", "s.h5", "-o", "f.h5", "--by", "uid", cwd=tmp_path)
    assert done.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr
    assert Studies
