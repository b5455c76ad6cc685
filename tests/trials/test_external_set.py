"""`predict` on a labelled set from elsewhere did not score it, and nothing else did: how a Run does at another hospital
could only be had by hand. `evaluate` scores it: images go through the pass of `predict`, and what is odd about such a
set (broken files, other names of classes, images that the Run was trained on, one class only) is said and decides
nothing.
"""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.evaluation.evaluate import evaluate
from featcache.evaluation.selection import CHOSEN_BY, TRAINED_ON
from featcache.prediction.bundle import bundle
from featcache.runs import Run
from featcache.runs.evaluation import Evaluation
from tests.conftest import draw
from tests.test_cli import Done, featcache


def elsewhere(folder: Path, n: int = 12, names: tuple[str, str] = ("Normal", "SICK")) -> Path:
    """Images of two classes in folders of other spellings, of two patients' images each."""
    for i in range(n):
        draw(folder / names[i % 2] / f"p{i // 4}-{i}.png", seed=1000 + i)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


def command(folder: Path, run: Path, weights: Path, *more: object) -> Done:
    return featcache("evaluate", run, *more, "--weights", weights, "--device", "cpu", cwd=folder)


@pytest.fixture(scope="module")
def run(phase_one: Path) -> Path:
    return phase_one / "linear"


@pytest.fixture(scope="module")
def weights(phase_one: Path) -> Path:
    return phase_one / "net.safetensors"


def test_a_folder_of_classes_is_scored_by_the_predictions_of_predict(run: Path, weights: Path, tmp_path: Path) -> None:
    images = elsewhere(tmp_path / "there")
    done = command(tmp_path, run, weights, images, "-o", "out", "--by", "folder", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    said = featcache("predict", run, images, "-o", "p.csv", "--weights", weights, "--device", "cpu", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    p = {row["image_id"]: float(row["p_sick"]) for row in rows_of(tmp_path / "p.csv")}
    ours = {row["image_id"]: float(row["p_sick"]) for row in rows_of(tmp_path / "out" / "predictions.csv")}
    assert ours == pytest.approx(p, abs=1e-6)
    truth = {name: name.startswith("SICK") for name in p}
    called = {name: value >= 0.5 for name, value in p.items()}
    assert answer["metrics"]["external"]["accuracy"] == pytest.approx(np.mean([truth[n] == called[n] for n in p]))
    assert [member["value"] for member in answer["subgroups"]["folder"]] == ["Normal", "SICK"]
    assert answer["set"]["respelled"] == {"Normal": "normal", "SICK": "sick"}
    assert not (tmp_path / "out.partial").exists()
    for text in ("'SICK' (6) as 'sick'", "class", "recall", "found 12 = scored 12 + left out 0 + failed 0"):
        assert text in done.stderr


def test_a_broken_image_is_counted_and_never_a_score(run: Path, weights: Path, tmp_path: Path) -> None:
    images = elsewhere(tmp_path / "there")
    (images / "Normal" / "cut.png").write_bytes((images / "Normal" / "p0-0.png").read_bytes()[:60])
    (images / "SICK" / "empty.png").write_bytes(b"")
    (images / "SICK" / "notes.txt").write_text("x")
    done = command(tmp_path, run, weights, images, "-o", "out")
    assert done.returncode == 3, done.stderr
    assert "found 14 = scored 12 + left out 0 + failed 2" in done.stdout
    assert {Path(row["image_id"]).name for row in rows_of(tmp_path / "out" / "failures.csv")} == {
        "cut.png",
        "empty.png",
    }
    assert Evaluation.open(tmp_path / "out").metrics["n"] == 12


def test_images_none_of_which_can_be_read_are_an_error(run: Path, weights: Path, tmp_path: Path) -> None:
    for i in range(3):
        path = tmp_path / "there" / "sick" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x89PNG\r\n")
    done = command(tmp_path, run, weights, "there", "-o", "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_csv_with_labels_of_other_names_and_links_to_elsewhere(run: Path, weights: Path, tmp_path: Path) -> None:
    images = elsewhere(tmp_path / "there", names=("a", "b"))
    names = {"a": "=SUM(1)", "b": "<b>krank=ja"}
    with open(tmp_path / "set.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "befund", "patient"])
        for path in sorted(images.rglob("*.png")):
            label = names[path.parent.name]
            rows.writerow(
                [path.relative_to(tmp_path), f"'{label}" if label[0] == "=" else label, path.name.split("-")[0]]
            )
        draw(tmp_path / "extra.png", seed=3000)
        rows.writerow(["extra.png", "unknown thing", "p9"])
    refused = command(tmp_path, run, weights, "set.csv", "--label-column", "befund")
    assert refused.returncode == 2
    assert "'<b>krank=ja', '=SUM(1)'" in refused.stderr.replace("\n", " ")
    done = command(
        tmp_path, run, weights, "set.csv", "--label-column", "befund", "--map", "=SUM(1)=normal", "--map",
        "<b>krank=ja=sick", "--group-by", "patient", "-o", "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = Evaluation.open(tmp_path / "out")
    assert found.record["set"]["unknown_labels"] == {"unknown thing": 1}
    assert found.record["set"]["n_groups"] == 3
    assert found.metrics["n"] == 12


def test_images_that_the_run_was_trained_on_are_known_by_their_bytes(
    run: Path, weights: Path, phase_one: Path, tmp_path: Path
) -> None:
    images = elsewhere(tmp_path / "there")
    trained_on = sorted((phase_one / "images" / "train" / "sick").iterdir())[:3]
    for i, path in enumerate(trained_on):
        shutil.copy(path, images / "SICK" / f"renamed-{i}.png")
    done = evaluate(run, images, tmp_path / "out", weights=str(weights), device="cpu")
    assert done.metrics["n"] == 12
    assert sum(done.record["left_out"].values()) == 3
    assert set(done.record["left_out"]) <= {TRAINED_ON, CHOSEN_BY}
    assert any(note.startswith("3 of the 15 labelled images") for note in done.notes)


def test_a_bundle_scores_as_its_run_does(run: Path, weights: Path, tmp_path: Path) -> None:
    bundle(Run.open(run), tmp_path / "model.fcb.zip", weights=str(weights))
    images = elsewhere(tmp_path / "there")
    ours = evaluate(run, images, tmp_path / "ours", weights=str(weights), device="cpu", keep=tmp_path / "kept.h5")
    theirs = evaluate(tmp_path / "model.fcb.zip", tmp_path / "kept.h5", tmp_path / "theirs")
    for name in ("metrics", "operating_point", "baselines", "comparison", "left_out"):
        assert ours.record[name] == theirs.record[name]
    assert any("bundle does not name" in note for note in theirs.notes)


@pytest.mark.parametrize("what", ["sick", "nobody knows"])
def test_a_folder_of_one_class_is_scored_where_the_run_knows_it(
    run: Path, weights: Path, tmp_path: Path, what: str
) -> None:
    for i in range(4):
        draw(tmp_path / "there" / what / f"{i}.png", seed=2000 + i)
    if what != "sick":
        with pytest.raises(UsageError, match="no label is a class of the Run"):
            evaluate(run, tmp_path / "there", tmp_path / "out", weights=str(weights), device="cpu")
        return
    done = evaluate(run, tmp_path / "there", tmp_path / "out", weights=str(weights), device="cpu")
    assert done.metrics["auroc"] is None
    assert any("there is no AUROC" in note for note in done.notes)


def test_a_store_of_another_network_is_refused_with_the_difference(
    run: Path, weights: Path, embedded: Path, tmp_path: Path
) -> None:
    done = command(tmp_path, run, weights, embedded, "-o", "out")
    assert done.returncode == 12
    assert "weights_sha256" in done.stderr or "backbone" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_predict_says_that_labels_are_scored_by_evaluate(run: Path, weights: Path, tmp_path: Path) -> None:
    """Of a folder of classes, of a CSV and of a store; not of images without labels."""
    images = elsewhere(tmp_path / "there", n=4)
    plain = tmp_path / "plain"
    for i in range(2):
        draw(plain / f"{i}.png", seed=4000 + i)
    (tmp_path / "set.csv").write_text("path,label\nthere/Normal/p0-0.png,normal\nthere/SICK/p0-1.png,\n")
    kept = ["--keep", "kept.h5"]
    for source, n in (("there", 4), ("set.csv", 1), ("plain", 0)):
        asked = [run, source, "-o", f"{source}.out.csv", "--weights", weights, "--device", "cpu"]
        done = featcache("predict", *asked, *(kept if source == "there" else []), "--json", cwd=tmp_path)
        notes = [note for note in json.loads(done.stdout)["notes"] if "featcache evaluate" in note]
        assert len(notes) == (n > 0), done.stderr
        assert all(note.startswith(f"{n} of these images ha") and f" {source} " in note for note in notes)
        assert ("featcache evaluate" in done.stderr) == (n > 0)
    done = featcache("predict", run, "--store", "kept.h5", "-o", "s.csv", "--json", cwd=tmp_path)
    assert any("kept.h5 scores the Run" in note for note in json.loads(done.stdout)["notes"])
    assert images.is_dir()


def test_of_a_folder_only_the_images_that_are_asked_for_are_read(run: Path, weights: Path, tmp_path: Path) -> None:
    images = elsewhere(tmp_path / "there")
    (images / "Normal" / "broken.png").write_bytes(b"no image")
    done = command(tmp_path, run, weights, images, "-o", "out", "--where", "label=SICK", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["set"]["found"] == answer["set"]["scored"] == 6
    assert "Only images with label=SICK are looked at: 6 of 13." in answer["notes"]


@pytest.mark.long
def test_a_killed_evaluation_goes_on_where_it_was(run: Path, weights: Path, tmp_path: Path) -> None:
    """Killed while images are on their way: the same command ends with the files of one that was not killed."""
    images = elsewhere(tmp_path / "there", n=400)
    asked = [sys.executable, "-m", "featcache", "evaluate", run, images, "--weights", weights, "--device", "cpu"]
    whole = subprocess.run([*asked, "-o", "whole"], cwd=tmp_path, capture_output=True, text=True, check=True)
    partial, n_kills = tmp_path / "out.partial", 0
    for seconds in (0.0, 0.3, 0.6):
        process = subprocess.Popen(
            [*asked, "-o", "out"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until and not list(partial.glob("*/part-*.h5")):
            time.sleep(0.02)
        time.sleep(seconds)
        n_kills += process.poll() is None
        process.kill()
        process.communicate()
    done = subprocess.run([*asked, "-o", "out"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert n_kills, whole.stderr
    assert not partial.exists(), done.stderr
    for name in ("predictions.csv", "images.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
