"""The command line as a person meets it: exit codes and what stands on the two streams."""

import io
import json
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
from rich.console import Console

from featcache.cli.main import main
from featcache.cli.progress import going_on, training
from featcache.cli.render import console, escaped, plain_table
from featcache.cli.results import history_table
from featcache.errors import Interrupted
from featcache.store import Store
from tests.conftest import SMALL, draw

RANDOM = ("--backbone", SMALL, "--weights", "random:0", "--input-size", "32")
NUMBERS = {f"{s}_{name}": 0.5 for s in ("train", "val") for name in ("loss", "accuracy", "precision", "recall", "f1")}
SPLIT_KEYS = [
    "n",
    "loss",
    "accuracy",
    "balanced_accuracy",
    "precision",
    "recall",
    "specificity",
    "f1",
    "auroc",
    "auprc",
    "confusion",
]


@dataclass
class Done:
    """What a command left: exit code and both streams."""

    returncode: int
    stdout: str
    stderr: str


def featcache(*arguments: object, cwd: Path) -> Done:
    """The entry point in this process, which spares each call the seconds that importing torch takes."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    "command",
    ["", "demo", "embed", "train-head", "fine-tune", "train", "predict", "bundle", "export",
     "export-studies", "export-onnx", "backbones", "info",
     "doctor", "status", "verify", "manifest", "manifest iu-xray", "manifest kermany", "manifest covid", "check",
     "audit", "report", "evaluate"],
)  # fmt: skip
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    done = featcache(*command.split(), "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert not done.stderr


def test_the_commands_are_exactly_these() -> None:
    from featcache.cli.main import app

    assert sorted(command.name or "" for command in app.registered_commands) == [
        "audit", "backbones", "bundle", "check", "demo", "doctor", "embed", "evaluate", "export", "export-onnx",
        "export-studies", "fine-tune", "info",
        "predict", "report", "status", "train", "train-head", "verify",
    ]  # fmt: skip
    assert [group.name for group in app.registered_groups] == ["manifest"]


def test_help_shows_the_defaults_of_the_head(tmp_path: Path) -> None:
    """Options of train-head have no default of their own: what help shows must be HeadSpec's, for each kind."""
    from featcache.specs import PATHS, HeadSpec

    text = " ".join(featcache("train-head", "--help", cwd=tmp_path).stdout.replace("│", " ").split())
    spec, mlp = HeadSpec(), HeadSpec.of("mlp")
    assert f"[default: ({spec.lr}, mlp {mlp.lr}, flatten-mlp" in text
    assert f"[default: ({spec.weight_decay}, mlp 0, flatten-mlp 0)]" in text
    for value in (spec.epochs, spec.batch_size, spec.class_weight, spec.scale, spec.seed):
        assert f"[default: ({value})]" in text
    assert f"[default: ({' '.join(f'{C:g}' for C in PATHS['logreg']['C'])})]" in text


def test_help_shows_the_limits_of_images(tmp_path: Path) -> None:
    from featcache.images.workers import TIMEOUT_S
    from featcache.specs import MAX_PIXELS

    text = featcache("embed", "--help", cwd=tmp_path).stdout
    assert f"[default: ({TIMEOUT_S:g})]" in text
    assert f"({MAX_PIXELS})" in text


def test_embed_answers_scripts_with_one_json_object(class_folder: Path, tmp_path: Path) -> None:
    done = featcache("embed", class_folder, "-o", "s.h5", *RANDOM, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == (
        [
            "store",
            "found",
            "skipped",
            "skipped_by_reason",
            "embedded",
            "reused",
            "failed",
            "duplicates",
            "equal_vectors",
            "dropped",
            "dropped_columns",
            "dim",
            "shapes",
            "backbone",
            "weights_sha256",
            "identity",
            "precision",
            "seconds",
            "images_per_second",
            "notes",
        ]
    )
    assert (answer["found"], answer["embedded"], answer["dim"]) == (12, 12, 96)
    with Store.open(tmp_path / answer["store"]) as store:
        assert store.identity_sha256 == answer["identity"]
        assert store.identity["backbone"]["weights_sha256"] == answer["weights_sha256"]


@pytest.mark.parametrize("options", [("--nope",), ("--epochs", "many"), ("--split-seed", -1)])
def test_wrong_options_answer_scripts_too(embedded: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    done = featcache("train-head", embedded, *options, "--json", cwd=tmp_path)
    assert done.returncode == json.loads(done.stdout)["exit_code"] == 2
    assert str(options[0]) in done.stderr


def test_train_head_answers_scripts_with_one_json_object(embedded: Path, tmp_path: Path) -> None:
    done = featcache("train-head", embedded, "--head", "linear", "--epochs", 2, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert list(answer) == [
        "run", "head", "spec", "n_parameters", "tta", "seconds", "epoch", "operating_point", "temperature",
        "baselines", "notes", "train", "val", "outer", "test", "sweep",
    ]  # fmt: skip
    assert answer["n_parameters"] == 194
    for side in ("train", "val", "test"):
        assert set(SPLIT_KEYS) <= set(answer[side])
    files = sorted(path.name for path in (tmp_path / answer["run"]).iterdir())
    assert files == [
        "curves.png", "head.safetensors", "history.csv", "images.json", "predictions.csv", "run.json", "split.json",
    ]  # fmt: skip


@pytest.mark.parametrize("counted_anew", [False, True])
def test_a_table_of_several_phases_shows_where_each_begins_and_ends(counted_anew: bool) -> None:
    both = [(1, e) for e in range(1, 48)] + [(2, e) for e in (range(1, 31) if counted_anew else range(48, 78))]
    table = printed(history_table([{"phase": float(p), "epoch": float(e), **NUMBERS} for p, e in both]))
    shown = [tuple(map(int, line.split()[:2])) for line in table if line.count("0.500") == 10]
    assert {both[i] for i in (0, 46, 47, 76)} < set(shown) < set(both)
    assert shown == sorted(shown)
    one = printed(history_table([{"epoch": float(e), **NUMBERS} for e in range(1, 78)]))
    assert not any("phase" in line for line in one)
    assert [line.split()[0] for line in one if line.count("0.500") == 10] == ["1", *map(str, range(7, 78, 7))]


def printed(table: object) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=200).print(table)
    return file.getvalue().splitlines()


def test_a_repeated_option_is_a_sweep(embedded: Path, tmp_path: Path) -> None:
    options = (
        "--head",
        "linear",
        "--head",
        "knn",
        "--n-neighbors",
        1,
        "--lr",
        0.001,
        "--lr",
        0.01,
        "--seed",
        0,
        "--seed",
        1,
    )
    done = featcache("train-head", embedded, *options, "--epochs", 3, "--folds", 2, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [row["rank"] for row in answer["sweep"]] == ["1", "2", "3"]
    assert sorted(row["n_fits"] for row in answer["sweep"]) == ["2", "4", "4"]
    assert sorted(row["lr"] for row in answer["sweep"]) == ["", "0.001", "0.01"]
    assert answer["val"]["chose"] == ["head"]
    people = featcache("train-head", embedded, *options, "--epochs", 3, "--folds", 2, cwd=tmp_path)
    assert "best of 5 heads" in people.stdout
    assert "chose head" in people.stdout


def test_labels_may_come_from_another_file(embedded: Path, tmp_path: Path) -> None:
    with Store.open(embedded) as store:
        rows = [f"{name},{'tall' if i % 3 else 'short'},{i % 2},{i // 2 % 2}" for i, name in enumerate(store.image_ids)]
    (tmp_path / "more.csv").write_text("\n".join(["image_id,height,fluid,mass", *rows]) + "\n")
    options = ("--labels", "more.csv", "--epochs", 2, "--json", "--split-seed", 1)
    done = featcache("train-head", embedded, *options, "--label-column", "height", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["val"]) >= {"confusion", "intervals"}
    findings = ("--label-column", "fluid", "--label-column", "mass")
    done = featcache("train-head", embedded, *options, *findings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [each["n"] for each in json.loads(done.stdout)["test"]["per_class"]] == [4, 4]


def test_a_person_gets_tables_on_stdout(embedded: Path, tmp_path: Path) -> None:
    done = featcache("train-head", embedded, "-o", "run", "--positive", "normal", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch" in done.stdout
    assert "positive class: normal" in done.stdout
    assert "194 parameters" in done.stdout
    assert not done.stderr


def test_failed_images_give_exit_code_3_and_are_named(class_folder: Path, tmp_path: Path) -> None:
    (class_folder / "train" / "sick" / "\x1b[31mbad.png").write_bytes(b"no image")
    done = featcache("embed", class_folder, "-o", "s.h5", *RANDOM, cwd=tmp_path)
    assert done.returncode == 3
    assert "found 13 = embedded 12 + reused 0 + failed 1" in done.stdout
    assert r"\x1b[31mbad.png" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("train-head", "gone.h5"), 10, "there is no store at gone.h5"),
        (("embed", "nowhere", "-o", "s.h5", *RANDOM), 2, "nowhere does not exist: a folder of images, a .csv"),
        (("embed", "images", "-o", "s.h5", "--backbone", "resnet81"), 2, "no backbone is named 'resnet81'"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--mean", "a,b"), 2, "--mean 'a,b': numbers are expected"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--std", "1,2"), 2, "--std: one or three numbers"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--device", "cuda:9"), 2, "--device cuda:9 cannot be used here"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--crop-pct", "7"), 2, "--crop-pct must be from 0.01 to 1"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--input-size", "8"), 0, ""),
        (("backbones", "nothing-like-it"), 2, "no backbone matches"),
        (("backbones", "--taps", "nothing-like-it"), 2, "no backbone is named 'nothing-like-it'"),
        (("backbones", "--taps", "pit_ti_224"), 2, "timm does not say what the blocks of Pooling"),
        (("backbones", "re", "--taps", "resnet18"), 2, "--taps resnet18 is of one backbone: leave 're' away"),
        (("train-head", "small.h5", "--lr", "-1"), 2, "featcache: --lr must be > 0 and at most 1000, got -1.0"),
        (("train-head", "small.h5", "--weight-decay", "-1"), 2, "--weight-decay must be from 0 to 1000, got -1.0"),
        (("train-head", "small.h5", "--folds", "3", "--val-fraction", "0.1"), 2, "--folds and --val-fraction exclude"),
        (
            ("train-head", "small.h5", "--label-column", "a", "--label-column", "a"),
            2,
            "label columns must be named once",
        ),
        (
            ("embed", "images", "-o", "s.h5", *RANDOM, "--augmentations", "99"),
            2,
            "--augmentations must be from 1 to 32, got 99",
        ),
        (("embed", "images", "-o", "s.h5", "--backbone", SMALL, "--weights", "no.pth"), 2, "--weights no.pth: no such"),
        (("predict", "images", "x", "--weights", "no.pth"), 2, "--weights no.pth: no such file"),
        (("train-head", "small.h5", "--head", "deep"), 2, "--head must be one of linear, mlp"),
        (("train-head", "small.h5", "--dropout", "0.5"), 2, "--dropout does not apply to linear heads"),
        (("train-head", "small.h5", "--head", "mlp", "--hidden-sizes", "a"), 2, "--hidden-sizes 'a': whole numbers"),
        (("train-head", "small.h5", "--operating-point", "best"), 2, "'best' is no rule for an operating point"),
        (("train-head", "small.h5", "--head", "flatten-mlp"), 2, "has no 'grid' features"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--float-range", "1"), 2, "--float-range: two numbers are"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--bit-depth", "7"), 2, "--bit-depth must be from 8 to 16, got 7"),
        (
            ("embed", "images", "-o", "s.h5", *RANDOM, "--dtype", "int8"),
            2,
            "--dtype int8: float32 or float16 is expected",
        ),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--part-rows", "0"), 2, "--part-rows must be at least 1, got 0"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--mean", "nan"), 2, "--mean must be from -10 to 10"),
        (("embed", "images", "-o", "s.h5", *RANDOM, "--crop-pct", "nan"), 2, "--crop-pct must be from 0.01 to 1"),
        (("verify", "gone.h5"), 10, "there is no store at gone.h5"),
        (("status", "gone.h5"), 10, "there is no store at gone.h5"),
        (("info", "images"), 2, "images is a folder; a store is the .h5 file that featcache embed writes."),
        (("train-head", "images"), 2, "images is a folder; a store is the .h5 file that featcache embed writes."),
        (("status", "run"), 2, "run is the folder of a Run; a store is the .h5 file that featcache embed writes."),
        (
            ("export", "m.fcb.zip", "-o", "out.npz"),
            10,
            "no store at m.fcb.zip. A store is the .h5 file that featcache embed",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_its_exit_code(
    embedded: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    done = featcache(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)


def test_wrong_weights_are_refused_before_torch_is_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from featcache.cli.main import main\n"
        "sys.argv = ['featcache', 'train', 'images', '--model', 'resnet18', '--weights', 'no.pth']\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 2 and 'torch' not in sys.modules, end.code\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, stderr=subprocess.DEVNULL)


NAMES = (":smile: [red]x[/] [/]", "a\\", "\\\\", "[b]\\", "a\\[b]\\", "[", "\\[", "x]\\", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_on_the_terminal_as_it_is(name: str) -> None:
    with io.StringIO() as out, redirect_stdout(out):
        table = plain_table("x")
        table.add_row(escaped(name))
        people = console(False)
        people.print(f"<[bold]{escaped(name)}[/]>{escaped(name)}|", highlight=False)
        people.print(table)
        lines = out.getvalue().splitlines()
    assert lines[0] == f"<{name}>{name}|"
    assert lines[2].strip() == name.strip()


@pytest.mark.parametrize("n_done", [0, 7])
def test_a_stop_says_whether_anything_is_kept(n_done: int) -> None:
    def stop() -> None:
        with going_on("embedding") as (on_progress, _):
            on_progress(n_done, 9)
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        stop()
    assert ("everything finished is kept" in str(stopped.value)) == bool(n_done)
    assert ("nothing was finished yet" in str(stopped.value)) == (not n_done)


@pytest.mark.parametrize("n_done", [0, 1])
def test_a_stopped_training_says_whether_an_epoch_is_kept(n_done: int) -> None:
    def stop() -> None:
        with training() as (callbacks, _):
            for epoch in range(n_done):
                callbacks.on_epoch(epoch + 1, 3, {"train_loss": 1.0, "train_accuracy": 0.5})
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        stop()
    assert ("everything finished is kept" in str(stopped.value)) == bool(n_done)
    assert ("no epoch was finished yet" in str(stopped.value)) == (not n_done)


def test_a_single_image_is_named_and_several_are_counted(class_folder: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted((class_folder / "train" / "sick").iterdir())
    (class_folder / "train" / "sick" / "alone[red].png").write_bytes(first.read_bytes())
    command = ("embed", class_folder, "-o", "s.h5", *RANDOM, "--group-pattern", r"/(\w+p\d)")
    said = " ".join(featcache(*command, cwd=tmp_path).stdout.split())
    assert "; train/sick/alone[red].png matches no group and is its own" in said
    assert "has the same bytes as another; it was computed once" in said
    assert "images " not in said
    (class_folder / "train" / "sick" / "other.png").write_bytes(second.read_bytes())
    said = " ".join(featcache(*command, cwd=tmp_path).stdout.split())
    assert "; 2 images match no group and are their own" in said
    assert "2 images have the same bytes as another; each was computed once" in said
    done = featcache(*command[:-2], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: s.h5 had the column group; this pass gives none, so it is gone" in " ".join(done.stdout.split())
    assert json.loads(featcache(*command, "--json", cwd=tmp_path).stdout)["dropped_columns"] == []
    assert json.loads(featcache(*command[:-2], "--json", cwd=tmp_path).stdout)["dropped_columns"] == ["group"]


def test_another_identity_is_refused_with_the_fields_that_differ(embedded: Path, tmp_path: Path) -> None:
    before = embedded.read_bytes()
    done = featcache("embed", "images", "-o", "small.h5", *RANDOM[:-1], "48", cwd=tmp_path)
    assert done.returncode == 12
    assert "transform.input_size: [32, 32] here, [48, 48] asked" in done.stderr
    assert embedded.read_bytes() == before


def test_a_store_is_described_and_found_whole(embedded: Path, tmp_path: Path) -> None:
    done = featcache("info", embedded, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("features.pooled.dim", "identity.transform.interpolation", "columns.label.sick"):
        assert text in done.stdout
    about = json.loads(featcache("info", embedded, "--json", cwd=tmp_path).stdout)
    assert (about["rows"], about["columns"]["split"]) == (12, {"test": 4, "train": 8})
    done = featcache("verify", embedded, cwd=tmp_path)
    assert "is whole: 12 rows" in done.stdout
    answer = json.loads(featcache("verify", embedded, "--quick", "--json", cwd=tmp_path).stdout)
    assert (answer["n_rows"], answer["full"]) == (12, False)
    assert "published; of 12 images 12 are done" in featcache("status", embedded, cwd=tmp_path).stdout


def test_a_damaged_store_is_told_to_people_and_to_scripts(embedded: Path, tmp_path: Path) -> None:
    data = bytearray(embedded.read_bytes())
    with h5py.File(embedded) as file:
        data[file["features/pooled"].id.get_chunk_info(0).byte_offset + 9] ^= 4
    embedded.write_bytes(data)
    done = featcache("verify", embedded, "--json", cwd=tmp_path)
    assert done.returncode == 13
    assert "features/pooled, rows 0 to 11: cannot be read" in done.stderr
    error = json.loads(done.stdout)
    assert (error["error"], error["exit_code"]) == ("CorruptStore", 13)
    assert featcache("verify", embedded, "--quick", cwd=tmp_path).returncode == 0


def test_rules_of_decoding_reach_the_store(class_folder: Path, tmp_path: Path) -> None:
    options = (
        "--bit-depth",
        "12",
        "--float-range",
        "0,1",
        "--max-pixels",
        "100000",
        "--first-frame",
        "--dtype",
        "float16",
    )
    done = featcache("embed", class_folder, "-o", "s.h5", *RANDOM, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Store.open(tmp_path / "s.h5") as store:
        assert store.identity["decode"]["float"] == [0.0, 1.0]
        assert store.identity["decode"]["gray16"].startswith("12 bit;")
        assert store.identity["stored_dtype"] == store.dtype() == "float16"


@pytest.mark.usefixtures("empty_hub")
def test_unreachable_weights_leave_one_line_and_no_file(class_folder: Path, tmp_path: Path) -> None:
    done = featcache("embed", class_folder, "-o", "s.h5", "--backbone", "efficientnet_b1", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    for way_out in ("efficientnet_b1.ra4_e3600_r240_in1k", "--weights FILE", "random:0"):
        assert way_out in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "images"]


def test_a_folder_that_cannot_be_written_is_said_before_any_work(class_folder: Path, tmp_path: Path) -> None:
    done = featcache("embed", class_folder, "-o", "/proc/none/s.h5", *RANDOM, cwd=tmp_path)
    assert done.returncode in (21, 74)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_stopping_keeps_what_is_finished_and_the_same_command_continues(tmp_path: Path, number: signal.Signals) -> None:
    for i in range(320):
        draw(tmp_path / "images" / f"{i:04d}.png", i)
    command = ["embed", "images", "-o", "s.h5", *RANDOM, "--part-rows", "32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "featcache", *command], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    partial = tmp_path / "s.h5.partial"
    deadline = time.monotonic() + 120
    while len(list(partial.glob("part-*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.decode().splitlines() == [
        "featcache: stopped; everything finished is kept. Run the same command to continue."
    ]
    n_finished = len(list(partial.glob("part-*")))
    assert n_finished >= 2
    assert not (tmp_path / "s.h5").exists()
    done = featcache(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"resuming: {n_finished} of 10 parts are done" in done.stderr
    assert len(Store.open(tmp_path / "s.h5")) == 320
    assert not partial.exists()


def test_backbones_lists_the_suggested_ones(tmp_path: Path) -> None:
    done = featcache("backbones", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("efficientnet_b1", "6,513,184", "1,280", "inception_resnet_v2", "legacy_xception", "apache-2.0"):
        assert word in done.stdout
    rows = json.loads(featcache("backbones", "resnet18", "--json", cwd=tmp_path).stdout)["backbones"]
    assert {"name", "tag", "n_parameters", "n_features", "input_size", "licence"} == set(rows[0])


def test_backbones_say_what_of_them_can_be_unfrozen(tmp_path: Path) -> None:
    done = featcache("backbones", "--taps", "efficientnet_b1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: " ".join(line.split()) for line in done.stdout.splitlines()}
    assert lines["last-block"] == "last-block 1 blocks.6.1 320 × 8 × 8 1,975,760 1,978,322 2,304,722"
    assert lines["last-stage"].startswith("last-stage 2 blocks.6 192 × 8 × 8 ")
    assert lines["all"].startswith("all 24 conv_stem 3 × 240 × 240 6,513,184 ")
    answer = json.loads(featcache("backbones", "--taps", "resnet18.tv_in1k", "--json", cwd=tmp_path).stdout)
    assert answer["backbone"] == "resnet18.tv_in1k"
    row = answer["choices"][0]
    assert (row["unfreeze"], row["n_blocks"], row["first"]) == ("last-block", 1, "layer4.1")
    assert row["boundary"] == [512, 7, 7]
    assert [row[key] for key in ("n_trainable", "with_linear", "with_mlp")] == [4_720_640, 4_721_666, 4_852_994]


def test_version(tmp_path: Path) -> None:
    import featcache as package

    assert featcache("--version", cwd=tmp_path).stdout.strip() == f"featcache {package.__version__}"
