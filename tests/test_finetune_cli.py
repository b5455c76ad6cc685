"""`fine-tune` and `train` as a person meets them: one line for a mistake, one JSON object for a script, and kill -9."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featcache.runs import Run
from featcache.specs import HeadSpec, SelectionSpec, SplitSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import NET
from tests.test_checkpoints import file_size
from tests.test_cli import Done, featcache

ROOT = Path(__file__).parents[1]
QUICK = ("--epochs", 1, "--batch-size", 8, "--lr", 0.003)


@pytest.fixture
def here(phase_one: Path, tmp_path: Path) -> Path:
    """A folder with everything of phase 1 in it, to be worked in."""
    shutil.copytree(phase_one, tmp_path / "here")
    return tmp_path / "here"


def tuned(here: Path, *arguments: object, store: bool = True, parent: str = "linear") -> Done:
    source = ("--from-cache", "tail.h5") if store else ("--images", "images")
    return featcache("fine-tune", parent, *source, "--weights", "net.safetensors", *QUICK, *arguments, cwd=here)


def check_refused(done: Done, code: int, message: str) -> None:
    """One line, the exit code, no traceback, nothing on stdout."""
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# --- answers ----------------------------------------------------------------------------------------------------------


def test_fine_tune_answers_scripts_with_one_json_object(here: Path) -> None:
    done = tuned(here, "--json", "--unfreeze", "last-block", "--operating-point", "youden")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "run", "parent", "head", "n_trainable", "trainable", "seconds", "epoch", "gain", "before", "operating_point",
        "temperature", "baselines", "notes", "recipe", "train", "val", "test",
    ]  # fmt: skip
    assert answer["parent"] == "linear"
    assert answer["n_trainable"] == answer["trainable"]["backbone"] + answer["trainable"]["head"]
    assert answer["recipe"]["stages"] == [{"unfreeze": "last-block", "epochs": 1}]
    for side in ("train", "val", "test"):
        assert {"n", "loss", "accuracy", "auroc", "f1", "confusion"} <= set(answer[side])
    assert Path(answer["run"]).name.startswith("linear-tuned-")
    assert sorted(path.name for path in (here / answer["run"]).iterdir()) == [
        "backbone.safetensors", "curves.png", "head.safetensors", "history.csv", "images.json", "predictions.csv",
        "run.json", "split.json",
    ]  # fmt: skip
    assert not list(here.glob("*.partial"))


def test_train_answers_scripts_with_one_json_object(here: Path) -> None:
    command = ("train", "images", "--model", NET, "--weights", "random:0", "--input-size", 32, *QUICK, "--json")
    done = featcache(*command, "--val-fraction", 0.25, cwd=here)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["parent"] is None
    assert answer["run"].startswith(f"runs/images-{NET}-")
    assert answer["recipe"]["stages"] == [{"unfreeze": "all", "epochs": 1}]
    assert (answer["recipe"]["lr"], answer["recipe"]["backbone_lr"]) == (0.003, 0.003), (
        "of a whole network both are --lr"
    )
    assert (answer["train"]["n"], answer["val"]["n"], answer["test"]["n"]) == (24, 8, 16)
    assert answer["seconds"] > 0


def test_a_person_gets_both_phases_and_what_the_second_bought(here: Path) -> None:
    done = tuned(here, "-o", "run")
    assert done.returncode == 0, done.stderr
    about, epoch, *_ = done.stderr.splitlines()
    assert about == "the positive class is 'sick', as in linear."
    assert epoch.startswith("epoch 1 of 1: train loss ")
    for text in (
        "phase",
        "val, since linear: AUROC",
        "test, since linear: AUROC",
        "difference",
        "trainable parameters",
    ):
        assert text in done.stdout
    assert "(these rows chose the epoch)" in done.stdout


def test_images_are_shown_as_they_are_if_that_is_asked(here: Path) -> None:
    """Then the images give what their store gives."""
    runs = []
    for name, store, more in (("store", True, ()), ("images", False, ("--no-augment",)), ("augmented", False, ())):
        assert tuned(here, "-o", f"from-{name}", *more, store=store).returncode == 0
        runs.append([point["train_loss"] for point in Run.open(here / f"from-{name}").history()][-1])
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)
    assert runs[0] != pytest.approx(runs[2], abs=1e-4)


def test_a_run_in_the_current_folder_has_a_name(here: Path) -> None:
    """`.` is a place like any other, for the Run that is read and for the one that is written."""
    (here / "new").mkdir()
    command = ("--from-cache", here / "tail.h5", "--weights", here / "net.safetensors", *QUICK)
    done = featcache("fine-tune", ".", *command, "--json", cwd=here / "linear")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["parent"] == "linear"
    assert Path(answer["run"]).parent == here
    done = featcache("fine-tune", "../linear", *command, "-o", ".", cwd=here / "new")
    assert done.returncode == 0, done.stderr
    assert (here / "new" / "run.json").exists()
    small = ("--model", "simple-cnn", "--weights", "random:0", "--input-size", 32)
    done = featcache("train", ".", *small, *QUICK, "--json", cwd=here / "images")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"].startswith("runs/images-simple-cnn-")


# --- mistakes ---------------------------------------------------------------------------------------------------------

RUN = ("fine-tune", "linear")
CACHE = ("--from-cache", "tail.h5")
WEIGHTS = ("--weights", "net.safetensors")
MISTAKES: list[tuple[tuple[object, ...], int, str]] = [
    ((*RUN, *WEIGHTS), 2, "fine-tuning needs either the images of the Run (--images) or a store of them (--from"),
    ((*RUN, *CACHE, "--images", "images"), 2, "needs either the images of the Run (--images) or a store of them"),
    ((*RUN, "--images", "images", "--augmentations"), 2, "--augmentations are read from a store: give --from-cache"),
    ((*RUN, *CACHE, "--weights", "random:0"), 12, "backbone.weights_sha256"),
    ((*RUN, *CACHE, "--weights", "gone.pth"), 2, "--weights gone.pth: no such file"),
    ((*RUN, *CACHE, "--weights", "images"), 2, "--weights images: no such file"),
    ((*RUN, *CACHE, *WEIGHTS, "--unfreeze", "all"), 2, "lies below it: unfreeze last-block or last-stage"),
    ((*RUN, *CACHE, *WEIGHTS, "--unfreeze", "layer9"), 2, "--unfreeze 'layer9' is in the name of no parameter."),
    ((*RUN, *CACHE, *WEIGHTS, "--unfreeze", "["), 2, "--unfreeze '[' is no regular expression"),
    ((*RUN, *CACHE, *WEIGHTS, "--unfreeze", "99"), 2, "--unfreeze 99: this backbone has "),
    ((*RUN, *CACHE, *WEIGHTS, "--unfreeze", "0"), 2, "--unfreeze 0: this backbone has "),
    ((*RUN, *CACHE, *WEIGHTS, "--epochs", 1, "--epochs", 2), 2, "--epochs 2: 2 of them for 0 --unfreeze"),
    ((*RUN, *CACHE, *WEIGHTS, "--lr", "nan"), 2, "--lr must be > 0 and at most 1000, got nan."),
    ((*RUN, *CACHE, *WEIGHTS, "--preset", "best"), 2, "--preset must be one of cnn-mlp"),
    ((*RUN, *CACHE, *WEIGHTS, "--compile", "maybe"), 2, "--compile must be one of auto, on, off, got 'maybe'."),
    ((*RUN, *CACHE, *WEIGHTS, "--precision", "float16"), 2, "--precision float16 needs a GPU"),
    ((*RUN, *CACHE, *WEIGHTS, "--device", "cuda:77"), 2, "--device cuda:77 cannot be used here"),
    ((*RUN, *CACHE, *WEIGHTS, "--operating-point", "best"), 2, "'best' is no rule for an operating point."),
    ((*RUN, *CACHE, *WEIGHTS, "--batch-size", 1), 2, "a batch norm in training mode needs more than one image"),
    ((*RUN, *CACHE, *WEIGHTS, "--no-augment", "--hflip", 0.1), 2, "--no-augment uses the images as they are"),
    ((*RUN, *CACHE, *WEIGHTS, "-o", "mlp"), 2, "mlp holds another Run. Choose another folder with -o"),
    ((*RUN, *CACHE, *WEIGHTS, "-o", "images"), 2, "images is a folder with other files in it."),
    ((*RUN, *CACHE, *WEIGHTS, "-o", "tail.h5"), 2, "tail.h5 is an HDF5 file. Choose another place with -o."),
    (("fine-tune", "gone", *CACHE), 10, "there is no finished Run at gone."),
    (("fine-tune", "images", *CACHE), 10, "there is no finished Run at images."),
    ((*RUN, "--from-cache", "gone.h5"), 10, "there is no store at gone.h5."),
    ((*RUN, "--images", "nowhere"), 2, "nowhere does not exist:"),
    (("train", "nowhere", "--model", NET), 2, "nowhere does not exist:"),
    (("train", "images", "--model", "resnet81"), 2, "no backbone is named 'resnet81'."),
    (("train", "images", "--model", NET, "--head", "knn"), 2, "--head must be linear or mlp, got 'knn'."),
    (("train", "images", "--model", NET, "--hidden-sizes", "a"), 2, "--hidden-sizes 'a': whole numbers are expected"),
    (("train", "images", "--model", "simple-cnn"), 1, "simple-cnn has no pretrained weights."),
    (("train", "images", "--model", NET, "--weights", "random:0", "--input-size", 0), 2, "--input-size must be from 1"),
    (("train", "images", "--model", NET, "--weights", "random:0", "--folds", 99), 2, "folds"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_a_mistake_gets_one_line_and_its_exit_code(
    phase_one: Path, arguments: tuple[object, ...], code: int, message: str
) -> None:
    """And leaves nothing behind: the folder is shared by all of them."""
    before = sorted(path.name for path in phase_one.iterdir())
    done = featcache(*arguments, cwd=phase_one)
    check_refused(done, code, message)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("the positive class is")]
    assert len(lines) == (3 if code == 12 else 1), done.stderr  # a line for each field that differs
    assert sorted(path.name for path in phase_one.iterdir()) == before


@pytest.mark.parametrize("kind", ["knn", "refit"])
def test_runs_that_phase_two_cannot_start_from_are_refused(here: Path, kind: str) -> None:
    with Store.open(here / "tail.h5") as store:
        head = HeadSpec.of("knn") if kind == "knn" else HeadSpec(epochs=1)
        report = SelectionSpec(refit_all=kind == "refit")
        train_head(store, head, here / kind, split=SplitSpec(val_fraction=0.25), report=report)
    wanted = {"knn": "knn has a knn head; fine-tuning needs a linear or mlp head.", "refit": "(`refit_all`)"}
    check_refused(tuned(here, parent=kind), 2, wanted[kind])


def test_a_run_of_folds_is_not_the_start_of_a_third_phase(here: Path) -> None:
    """The network of each fold is not kept."""
    assert tuned(here, "-o", "second", parent="folds").returncode == 0
    done = tuned(here, parent="second", store=False)
    check_refused(done, 2, "second has no heads of its 3 folds to start from.")


def test_changed_and_missing_images_are_told_apart(here: Path) -> None:
    path = here / "images" / "train" / "sick" / "001.png"
    path.write_bytes(path.read_bytes() + b"more")
    check_refused(tuned(here, store=False), 16, "1 of 48 images are not those of the Run: train/sick/001.png")
    path.unlink()
    check_refused(tuned(here, store=False), 16, "images lacks 1 of the Run's 48 images: train/sick/001.png")
    assert not list(here.glob("*.partial"))


@pytest.mark.parametrize("name", ["images.json", "split.json", "head.safetensors"])
def test_a_damaged_run_is_said_to_be_damaged(here: Path, name: str) -> None:
    path = here / "linear" / name
    path.write_bytes(path.read_bytes()[:-40])
    check_refused(tuned(here), 13, f"{path.relative_to(here)} is damaged")


def test_damaged_weights_of_a_run_are_refused(here: Path) -> None:
    assert tuned(here, "-o", "second").returncode == 0
    path = here / "second" / "backbone.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    done = featcache("fine-tune", "second", "--images", "images", *QUICK, cwd=here)
    check_refused(done, 12, "backbone.weights_sha256")
    path.write_bytes(data[: len(data) // 2])
    done = featcache("fine-tune", "second", "--images", "images", *QUICK, cwd=here)
    assert done.returncode in (2, 13, 22), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- disks, writers, kills --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unfreeze", "n_bytes", "kept"), [("last-block", 10_000, False), (r"^bn2\.", 300_000, True)])
def test_a_full_disk_is_said_and_the_same_command_goes_on(here: Path, unfreeze: str, n_bytes: int, kept: bool) -> None:
    """Whether it is full at a checkpoint, or when the Run is written: then no epoch is trained again."""
    command = ("--unfreeze", unfreeze, "-o")
    with file_size(n_bytes):
        done = tuned(here, *command, "run")
    assert done.returncode == 20, done.stderr
    assert done.stderr.splitlines()[-1].startswith("featcache: no space: writing ")
    assert not list(here.rglob("*.tmp"))
    assert (here / "run.partial").exists() is kept
    again = tuned(here, *command, "run")
    assert again.returncode == 0, again.stderr
    assert ("epoch 1 of 1" not in again.stderr) is kept
    assert tuned(here, *command, "whole").returncode == 0
    for name in ("history.csv", "predictions.csv", "backbone.safetensors"):
        assert (here / "run" / name).read_bytes() == (here / "whole" / name).read_bytes()


class Started:
    """A real command line under way, in a process of its own."""

    def __init__(self, here: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "featcache", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(
            command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def until(self, holds: object) -> None:
        deadline = time.monotonic() + 120
        while not holds() and self.process.poll() is None and time.monotonic() < deadline:  # type: ignore[operator]
            time.sleep(0.002)


LONGER = ("--from-cache", "tail.h5", "--weights", "net.safetensors", "--epochs", 40, "--batch-size", 4, "-o", "run")


@pytest.mark.long
def test_kill_9_in_the_middle_of_epochs_changes_nothing(here: Path) -> None:
    """Again and again, until it is done: the history of a training that was left alone, byte for byte."""
    kills = 0
    for wanted in (1, 9, 25):
        started = Started(here, "fine-tune", "mlp", *LONGER)
        started.until(lambda n=wanted: list((here / "run.partial").glob(f"fold-0-{n:06d}-*")))
        if started.process.poll() is None:
            started.process.send_signal(signal.SIGKILL)
            kills += 1
        started.process.communicate(timeout=60)
    assert kills >= 2
    assert not (here / "run").exists()
    last = Started(here, "fine-tune", "mlp", *LONGER)
    stdout, stderr = last.process.communicate(timeout=200)
    assert last.process.returncode == 0, stderr
    assert "epoch 1 of 40" not in stderr
    whole = Started(here, "fine-tune", "mlp", *LONGER[:-1], "whole")
    _, stderr = whole.process.communicate(timeout=200)
    assert whole.process.returncode == 0, stderr
    for name in ("history.csv", "predictions.csv", "backbone.safetensors", "head.safetensors"):
        assert (here / "run" / name).read_bytes() == (here / "whole" / name).read_bytes(), name
    assert not (here / "run.partial").exists()
    assert "run" in stdout


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_says_so_and_a_second_writer_is_kept_out(here: Path, number: signal.Signals) -> None:
    started = Started(here, "fine-tune", "mlp", *LONGER)
    started.until(lambda: list((here / "run.partial").glob("fold-0-000003-*")))
    second = featcache("fine-tune", "mlp", *LONGER, cwd=here)
    check_refused(second, 11, f"run is being written by pid {started.process.pid}")
    started.process.send_signal(number)
    _, stderr = started.process.communicate(timeout=60)
    assert started.process.returncode == 130, stderr
    assert stderr.splitlines()[-1] == (
        "featcache: stopped; everything finished is kept. Run the same command to continue."
    )
    done = featcache("fine-tune", "mlp", *LONGER, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "epoch 3 of 40" not in done.stderr
