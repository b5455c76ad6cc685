"""A Run has everything that phase 2 needs of the store: the same rows, divided in the same way, and the scale."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from featcache.errors import CorruptStore, UnknownFormat, UsageError
from featcache.heads import inference
from featcache.identity import digest_json
from featcache.runs import Images, Run
from featcache.specs import HeadSpec, SplitSpec
from featcache.splits.protocol import Protocol, divide, watch_rows
from featcache.splits.task import Task
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import make_store, two_clouds
from tests.test_training import THREE_FINDINGS, findings, side

N, D = 120, 6
QUICK = HeadSpec(epochs=2)
Columns = dict[str, list[str]]


def columns_of() -> Columns:
    """Patients of three images, some rows without a label and some without a side."""
    labels = two_clouds(N, D)[1]
    labels[7] = labels[100] = ""
    where = ["train"] * 84 + ["test"] * 33 + [""] * 3
    return {"label": labels, "group": [f"p{i // 3}" for i in range(N)], "split": where}


def store_of(path: Path, columns: Columns) -> Store:
    content = [f"{i - 60 if i == 61 else i:064x}" for i in range(N)]  # image 61 is image 1
    return Store.open(make_store(path, two_clouds(N, D)[0], columns, content))


def images_of(run: Run) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run.path / "images.json").read_text("ascii"))
    return record


@pytest.fixture
def run(tmp_path: Path) -> Run:
    with store_of(tmp_path / "s.h5", {**columns_of(), "split": ["train"] * 120}) as store:
        return train_head(store, QUICK, tmp_path / "run", split=SplitSpec(n_splits=3))


# --- the rows ---------------------------------------------------------------------------------------------------------

SPLITS = {
    "hold-out": SplitSpec(),
    "folds": SplitSpec(n_splits=3, seed=5),
    "repeats": SplitSpec(n_splits=2, n_repeats=2),
    "hold-outs": SplitSpec(n_repeats=2, val_fraction=0.3),
    "nested": SplitSpec(n_splits=3, nested=True),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_run_divides_its_rows_again_as_they_were_divided(tmp_path: Path, name: str) -> None:
    split = SPLITS[name]
    with store_of(tmp_path / "s.h5", columns_of()) as store:
        run = Run.open(train_head(store, QUICK, tmp_path / "run", split=split).path)
        task = Task.of(store)
        wanted = divide(task, split, store.features)
    images, found, learnt = run.images(), run.protocol(), run.task()
    row_of = {name: i for i, name in enumerate(task.image_ids)}
    rows = np.array([row_of[name] for name in images.image_ids])
    assert rows.tolist() == sorted(set(wanted.rows.tolist()) | set(wanted.test.tolist()))
    assert images.content_sha256 == [task.content[i] for i in rows]
    assert images.labels.tolist() == task.labels[rows].tolist()
    check_same_division(found, wanted, rows)
    assert (learnt.classes, learnt.positive, learnt.image_ids) == (task.classes, task.positive, images.image_ids)
    assert len(images) == len(learnt.labelled) < N
    for ours, theirs in zip(found.folds, wanted.folds, strict=True):
        watched = watch_rows(learnt, found.groups, ours.train, found.seed)
        for a, b in zip(watched, watch_rows(task, wanted.groups, theirs.train, wanted.seed), strict=True):
            assert rows[a].tolist() == b.tolist()


def check_same_division(found: Protocol, wanted: Protocol, rows: np.ndarray) -> None:
    """`rows[i]` is the row of the store that row i of `found` is."""
    assert rows[found.test].tolist() == wanted.test.tolist()
    for ours, theirs in zip(found.folds, wanted.folds, strict=True):
        assert (ours.repeat, ours.number) == (theirs.repeat, theirs.number)
        assert rows[ours.train].tolist() == theirs.train.tolist()
        assert rows[ours.val].tolist() == theirs.val.tolist()
    same = wanted.groups[rows][:, None] == wanted.groups[rows]
    assert np.array_equal(found.groups[:, None] == found.groups, same)
    assert (found.seed, found.left_out) == (wanted.seed, wanted.left_out)


def test_findings_are_kept_with_what_is_unknown_of_them(tmp_path: Path) -> None:
    x, columns = findings(90, 5)
    for c in range(3):
        columns[f"f{c}"][11] = ""
    with Store.open(make_store(tmp_path / "s.h5", x, columns)) as store:
        run = train_head(store, QUICK, tmp_path / "run", target=THREE_FINDINGS)
        task = Task.of(store, THREE_FINDINGS)
    assert {value for row in images_of(run)["labels"] for value in row} == {0, 1, None}
    assert "image00011" not in run.images().image_ids
    assert np.array_equal(run.images().labels, task.labels[task.labelled], equal_nan=True)
    assert run.task().has_findings
    assert run.task().classes == ["f0", "f1", "f2"]


def test_names_that_are_not_text_are_kept(tmp_path: Path) -> None:
    ids = [os.fsdecode(b"caf\xe9 %d.png" % i) for i in range(40)]
    task = Task(ids, {}, [f"{i:064x}" for i in range(40)], np.arange(40) % 2, ["a", "b"], 1, {})
    images = Images.of(task, divide(task, SplitSpec(), None))
    again = Images.from_json(json.loads(json.dumps(images.to_json())), 2, False)
    assert again.image_ids == ids


def test_the_same_rows_make_the_same_list_whatever_else_is_in_the_store(tmp_path: Path) -> None:
    columns = columns_of()
    more = {name: [*values, *values[:30]] for name, values in columns.items()}
    more["label"][N:] = [""] * 30
    more["group"][N:] = [f"q{i}" for i in range(30)]
    made = []
    for name, each, n in (("a", columns, N), ("b", more, N + 30)):
        x = np.concatenate([two_clouds(N, D)[0], np.ones((30, D))])[:n]
        (tmp_path / name).mkdir()
        with Store.open(make_store(tmp_path / name / "s.h5", x, each)) as store:
            made.append(train_head(store, QUICK, tmp_path / name / "run"))
    assert images_of(made[0]) == images_of(made[1])


# --- what is damaged, foreign or old ----------------------------------------------------------------------------------


def write(run: Run, name: str, record: Any) -> None:
    (run.path / name).write_text(record if isinstance(record, str) else json.dumps(record))


def signed(record: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return {**rest, "sha256": digest_json(rest)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: "{", "Expecting"),
        (lambda record: "[" * 100_000, "recursion"),
        (lambda record: "[]", "it is no list of images"),
        (lambda record: {**record, "labels": [1 - label for label in record["labels"]]}, "sha256 is not that of its"),
        (lambda record: signed({**record, "labels": [1 - label for label in record["labels"]]}), "run.json names"),
        (lambda record: signed({**record, "labels": record["labels"][1:]}), "are not lists of one length"),
        (lambda record: signed({**record, "groups": None}), "are not lists of one length"),
        (lambda record: signed({**record, "image_ids": record["image_ids"][:1] * 118}), "a name stands twice"),
        (lambda record: signed({**record, "labels": [2] * 118}), "not the number of one of 2 classes"),
        (lambda record: signed({**record, "labels": [0.5] * 118}), "not the number of one of 2 classes"),
        (lambda record: signed({**record, "groups": [-1] * 118}), "groups are not whole numbers"),
    ],
    ids=["cut", "deep", "list", "digest", "other", "short", "none", "twice", "class", "half", "group"],
)
def test_a_damaged_or_foreign_list_of_images_is_said_in_one_line(run: Run, change: Any, message: str) -> None:
    write(run, "images.json", change(images_of(run)))
    for read in (run.images, run.protocol, run.task):
        with pytest.raises(CorruptStore, match=r"images\.json is damaged: ") as raised:
            read()
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_later_list_of_images_is_no_damage(run: Run) -> None:
    write(run, "images.json", signed({**images_of(run), "version": 2}))
    with pytest.raises(UnknownFormat, match=r"images\.json: .* version 2: upgrade featcache\.$"):
        run.images()


def test_a_split_of_other_images_is_not_that_of_the_run(run: Run) -> None:
    split = json.loads((run.path / "split.json").read_text())
    for changed in ("{}", "{", signed({**split, "folds": split["folds"][:2]}), {**split, "test": ["x"]}):
        write(run, "split.json", changed)
        with pytest.raises(CorruptStore, match=r"split\.json is damaged: .*\. Make the Run again\.$"):
            run.protocol()


def test_a_run_of_an_earlier_release_says_what_to_do(run: Run, tmp_path: Path) -> None:
    """It opens, and the same command in its place makes it whole."""
    before = images_of(run)
    (run.path / "images.json").unlink()
    record = json.loads((run.path / "run.json").read_text())
    del record["images_sha256"], record["feature_rms"], record["store"]["weights"]
    write(run, "run.json", record)
    old = Run.open(run.path)
    for read in (old.images, old.protocol, old.task, lambda: old.feature_rms):
        with pytest.raises(UsageError, match=r"an earlier featcache made it\. Run the same featcache train-head"):
            read()
    with Store.open(tmp_path / "s.h5") as store:
        again = train_head(store, QUICK, run.path, split=SplitSpec(n_splits=3))
    assert images_of(again) == before
    assert again.record == {**run.record, "seconds": again.record["seconds"]}


def forget_digests(run: Run) -> Run:
    """As a release left it that kept no digest of its tables."""
    record = {name: value for name, value in run.record.items() if name != "files_sha256"}
    write(run, "run.json", record)
    return Run.open(run.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:171], "one table|run.json names"),
        (lambda data: data[:-4], "run.json names|epochs"),
        (lambda data: b"".join(data.splitlines(keepends=True)[:-1]), "1 of 2 epochs"),
        (lambda data: data.replace(b"\n1.0,", b"\n1.0,7,"), "one table"),
        (lambda data: data + b"3\n", "one table"),
        (lambda data: data.replace(b"val_f1", b"val_\xff1"), "not those of a training"),
        (lambda data: data.replace(b"2.0,", b"\xff,"), "could not convert"),
        (lambda data: b"epoch\n" + b"9" * 200_000 + b"\n", "field larger"),
        (lambda data: b"", "not enough values"),
    ],
    ids=["cut", "digits", "lines", "cell", "row", "column", "bytes", "long", "empty"],
)
def test_a_damaged_history_is_said_in_one_line(run: Run, change: Any, message: str) -> None:
    """By its digest; and without one, by its columns, cells and epochs where these say it."""
    data = (run.path / "history.csv").read_bytes()
    (run.path / "history.csv").write_bytes(change(data))
    with pytest.raises(CorruptStore, match=r"history\.csv is damaged: .*\. Make the Run again\.$"):
        run.history()
    if "names" not in message or "one table" in message:
        with pytest.raises(CorruptStore, match=message) as raised:
            forget_digests(run).history()
        assert "\n" not in str(raised.value)
    (run.path / "history.csv").unlink()
    with pytest.raises(CorruptStore, match=r"history\.csv is gone"):
        run.history()


def test_a_damaged_ranking_is_said_in_one_line(tmp_path: Path) -> None:
    with store_of(tmp_path / "s.h5", columns_of()) as store:
        run = train_head(store, [QUICK, HeadSpec(epochs=1)], tmp_path / "run")
    path = run.path / "sweep.csv"
    data = path.read_bytes()
    assert [row["rank"] for row in run.sweep()] == ["1", "2"]
    for damaged in (data[:60], data.replace(b"n_fits", b"fits"), data.replace(b"\n1,", b"\n1,7,"), b""):
        path.write_bytes(damaged)
        for opened in (lambda: run, lambda: forget_digests(run)):
            with pytest.raises(CorruptStore, match=r"sweep\.csv is damaged: ") as raised:
                opened().sweep()
            assert "\n" not in str(raised.value)
        write(run, "run.json", run.record)


def test_a_table_that_another_training_left_is_not_of_the_run(run: Run) -> None:
    (run.path / "sweep.csv").write_text("rank,n_fits\n1,2\n")
    assert run.sweep() == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "-1e999"])
def test_a_record_holds_finite_numbers(run: Run, value: str) -> None:
    text = (run.path / "run.json").read_text()
    write(run, "run.json", text.replace('"temperature": ', f'"temperature": {value}, "was": '))
    with pytest.raises(CorruptStore, match=r"run\.json is damaged: it holds .* no number"):
        Run.open(run.path)


# --- the heads --------------------------------------------------------------------------------------------------------

KINDS = [
    HeadSpec(epochs=2),
    HeadSpec.of("mlp", hidden_sizes=(4,), epochs=2),
    HeadSpec.of("ridge"),
    HeadSpec.of("logreg"),
]


@pytest.mark.parametrize("spec", KINDS, ids=[spec.kind for spec in KINDS])
def test_the_heads_of_the_folds_say_what_the_val_rows_were_told(tmp_path: Path, spec: HeadSpec) -> None:
    with store_of(tmp_path / "s.h5", columns_of()) as store:
        run = train_head(store, spec, tmp_path / "run", split=SplitSpec(n_splits=3))
        row_of = {name: i for i, name in enumerate(store.image_ids)}
        x = store.features()
    heads, images, folds = run.fold_weights(), run.images(), run.protocol().folds
    assert len(heads) == len(folds) == 3
    assert all(head.keys() == run.weights().keys() for head in heads)
    p = {row["image_id"]: float(row["p_sick"]) for row in side(run, "val")}
    for head, fold in zip(heads, folds, strict=True):
        names = [images.image_ids[i] for i in fold.val]
        z = inference.logits(spec, head, x[[row_of[name] for name in names]], 2, 1)
        said = 1 / (1 + np.exp(z[:, 0] - z[:, 1]))
        np.testing.assert_allclose(said, [p[name] for name in names], atol=1e-5)


def test_one_fold_and_neighbours_have_no_heads_of_folds(tmp_path: Path) -> None:
    with store_of(tmp_path / "s.h5", columns_of()) as store:
        one = train_head(store, QUICK, tmp_path / "one")
        knn = train_head(store, HeadSpec.of("knn"), tmp_path / "knn", split=SplitSpec(n_splits=3))
    for run in (one, knn):
        assert run.fold_weights() == []
        assert not (run.path / "folds.safetensors").exists()
    assert knn.feature_rms is None


@pytest.mark.parametrize("name", ["head.safetensors", "folds.safetensors"])
def test_weights_of_which_one_bit_is_another_are_not_used(run: Run, name: str) -> None:
    data = bytearray((run.path / name).read_bytes())
    data[-3] ^= 1 << 6
    (run.path / name).write_bytes(data)
    with pytest.raises(CorruptStore, match=f"{name} is damaged: it is not the one that run.json names"):
        run.weights() if name.startswith("head") else run.fold_weights()


def test_heads_of_folds_that_changed_places_are_not_used(run: Run) -> None:
    """They would say of images what only heads may say that have not seen them."""
    path = run.path / "folds.safetensors"
    heads = load_file(path)
    save_file({f"{(int(key[0]) + 1) % 3}{key[1:]}": tensor for key, tensor in heads.items()}, path)
    with pytest.raises(CorruptStore, match=r"folds\.safetensors is damaged"):
        run.fold_weights()


def test_what_a_killed_training_left_is_no_part_of_the_next_one(run: Run, tmp_path: Path) -> None:
    before = {path.name for path in run.path.iterdir()}
    (run.path / "run.json").unlink()
    with store_of(tmp_path / "s.h5", {**columns_of(), "split": ["train"] * 120}) as store:
        other = train_head(store, HeadSpec.of("knn"), run.path, split=SplitSpec(n_splits=3))
    left = before - {path.name for path in other.path.iterdir()}
    assert {"folds.safetensors", "history.csv", "curves.png"} <= left
    assert other.fold_weights() == []
    assert other.history() == []


def test_damaged_weights_are_said_in_one_line(run: Run) -> None:
    for name, read in (("head.safetensors", run.weights), ("folds.safetensors", run.fold_weights)):
        data = (run.path / name).read_bytes()
        for damaged in (b"", data[: len(data) // 2], b"\xff" * 100):
            (run.path / name).write_bytes(damaged)
            with pytest.raises(CorruptStore, match=rf"{name} is damaged: .*\. Make the Run again\.$"):
                read()
        (run.path / name).write_bytes(data)
    save_file({"weight": np.zeros(1)}, run.path / "folds.safetensors")
    with pytest.raises(CorruptStore, match=r"folds\.safetensors is damaged"):
        run.fold_weights()


@pytest.mark.parametrize("scale", ["rms", "none", "standard"])
def test_the_scale_of_the_features_is_that_of_the_rows_learnt_from(tmp_path: Path, scale: str) -> None:
    """Whatever the head was scaled by; a tenth of the rows that is watched is not learnt from."""
    spec = HeadSpec(epochs=2, scale=scale, patience=2)
    with store_of(tmp_path / "s.h5", columns_of()) as store:
        run = train_head(store, spec, tmp_path / "run")
        row_of = {name: i for i, name in enumerate(store.image_ids)}
        x = store.features()
    protocol, images = run.protocol(), run.images()
    kept, _ = watch_rows(run.task(), protocol.groups, protocol.folds[0].train, protocol.seed)
    learnt = x[[row_of[images.image_ids[i]] for i in kept]].astype(np.float64)
    assert run.feature_rms == pytest.approx(np.sqrt(np.mean(learnt**2)), rel=1e-6)
    assert run.feature_rms != pytest.approx(np.sqrt(np.mean(x**2)), rel=1e-6)


def test_the_origin_of_the_weights_is_kept_where_the_store_says_it(embedded: Path, run: Run, tmp_path: Path) -> None:
    with Store.open(embedded) as store:
        made = train_head(store, QUICK, tmp_path / "embedded")
    assert made.record["store"]["weights"] == "random:0"
    assert run.record["store"]["weights"] is None


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "store.h5").write_bytes(b"")
    with pytest.raises(UsageError, match=r"store\.h5 is a file; a Run is the folder that featcache train-head writes"):
        Run.open(tmp_path / "store.h5")
