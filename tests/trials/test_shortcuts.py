"""All images of two of three classes were 1,024 pixels high, those of the third were not, and the audit said that
height tells the label with 0.605. What tells one class from the rest without a look at an image is named, by its value,
with its score; and a Run says it of what its store knows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featcache.auditing.audit import audit
from featcache.auditing.results import Audit
from featcache.auditing.shortcuts import ALL_VARIABLES, Shortcut, column_shortcuts, notable
from featcache.embedding import embed
from featcache.manifest import Manifest
from featcache.specs import BackboneSpec, HeadSpec, TargetSpec
from featcache.store import Store
from featcache.training.train_head import train_head
from tests.conftest import KERMANY_GROUPS, SMALL, make_store, shared

CLASSES = ("covid", "normal", "viral")
N = 600
GROUPS = np.arange(N) // 2


def labels_of(n: int = N) -> list[str]:
    """A class per patient of two images."""
    return [CLASSES[i // 2 % 3] for i in range(n)]


def told(columns: dict[str, list[str]], labels: list[str] | None = None) -> dict[str, Shortcut]:
    """By class."""
    labels = labels or labels_of()
    ids = [f"{label}/{i:05d}.png" for i, label in enumerate(labels)]
    found = column_shortcuts(ids, {"label": labels, **columns}, {"": labels}, np.arange(len(labels)) // 2)
    return {each.label: each for each in found}


def heights(seed: int = 0) -> list[str]:
    """1,024 of two classes, something else of the third."""
    rng = np.random.default_rng(seed)
    return [str(rng.integers(400, 2400)) if label == "viral" else "1024" for label in labels_of()]


# --- from what a store knows ------------------------------------------------------------------------------------------


def test_a_size_that_only_one_class_does_not_have_tells_that_class() -> None:
    found = told({"height": heights()})
    assert found["viral"].variable == "height"
    assert found["viral"].auroc > 0.99
    assert str(found["viral"]).startswith("AUROC of viral predicted from height alone: ")
    assert notable(list(found.values()))[0].label == "viral"


def test_a_size_in_the_middle_of_the_others_is_told_by_value() -> None:
    """No threshold does that: `normal` is from 900 to 1,100, the others are below and above."""
    rng = np.random.default_rng(1)
    width = [
        rng.integers(900, 1100) if label == "normal" else rng.choice([rng.integers(400, 880), rng.integers(1120, 2000)])
        for label in labels_of()
    ]
    assert told({"width": [str(w) for w in width]})["normal"].auroc > 0.98


def test_a_fine_grained_age_of_one_class_is_told_by_value() -> None:
    rng = np.random.default_rng(2)
    ages = [f"{rng.normal(9, 2) if label == 'viral' else rng.normal(45, 15):.2f}" for label in labels_of()]
    assert told({"age": ages})["viral"].auroc > 0.95


def test_a_rare_class_is_told_by_its_rare_value() -> None:
    labels = ["rare" if i % 60 < 2 else label for i, label in enumerate(labels_of())]
    sites = ["Haifa" if label == "rare" else ("Bern", "Oslo")[i // 2 % 2] for i, label in enumerate(labels)]
    rare = told({"site": sites}, labels)["rare"]
    assert (rare.variable, rare.auroc, rare.high) == ("site", 1.0, 1.0)
    assert rare.low < 0.9  # ten patients are no certainty


def test_a_folder_or_a_format_is_told_without_any_column() -> None:
    labels = labels_of()
    for ids, variable in (
        ([f"{'hospital-b' if label == 'covid' else 'a'}/{i}.png" for i, label in enumerate(labels)], "source folder"),
        ([f"{i}.{'jpg' if label == 'covid' else 'png'}" for i, label in enumerate(labels)], "file format"),
    ):
        best = column_shortcuts(ids, {}, {"": labels}, GROUPS)[0]
        assert (best.label, best.variable, best.auroc) == ("covid", variable, 1.0)


def test_what_tells_nothing_is_not_worth_saying() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        columns = {"age": [f"{v:.1f}" for v in rng.normal(50, 20, N)], "site": [str(v) for v in rng.integers(0, 5, N)]}
        assert notable(list(told(columns).values())) == []


def test_patients_are_not_told_from_themselves() -> None:
    """A value that is its patient's alone says nothing of others: both images of a patient are in one fold."""
    rng = np.random.default_rng(3)
    shuffled = np.repeat(rng.permutation([CLASSES[i % 3] for i in range(N // 2)]), 2).tolist()
    assert notable(list(told({"serial": [f"{i // 2 + 0.5}" for i in range(N)]}, shuffled).values())) == []


def test_the_label_once_more_is_no_shortcut_but_a_site_for_each_class_is() -> None:
    numbers = [str(CLASSES.index(label)) for label in labels_of()]
    assert told({"diagnosis": [label.upper() for label in labels_of()], "target": numbers}) == {}
    sites = [("Bern", "Oslo", "Rome")[CLASSES.index(label)] for label in labels_of()]
    assert {each.variable for each in told({"site": sites}).values()} == {"site"}


def coded(seed: int) -> dict[str, list[str]]:
    """Two findings that have nothing to do with each other, and a view that goes with the first."""
    rng = np.random.default_rng(seed)
    findings = {name: [str(v) for v in rng.integers(0, 2, N)] for name in ("edema", "mass")}
    return {**findings, "view": ["lateral" if value == "1" else "frontal" for value in findings["edema"]]}


def test_each_finding_has_its_own_shortcut() -> None:
    columns = coded(4)
    labels = {name: columns[name] for name in ("edema", "mass")}
    found = column_shortcuts([f"{i}.png" for i in range(N)], columns, labels, np.arange(N), ("edema", "mass"))
    (edema,) = notable(found)
    assert (edema.label, edema.variable, edema.auroc) == ("edema", "view", 1.0)


# --- in an audit ------------------------------------------------------------------------------------------------------


def audited(path: Path, columns: dict[str, list[str]], **options: object) -> Audit:
    x = np.random.default_rng(5).standard_normal((N, 6))
    groups = {"group": [f"p{i // 2}" for i in range(N)]}
    with Store.open(make_store(path / "s.h5", x, {**groups, **columns})) as store:
        return audit(store, near=0.99999, **options)  # type: ignore[arg-type]


def test_an_audit_names_the_class_and_the_variable(tmp_path: Path) -> None:
    found = audited(tmp_path, {"label": labels_of(), "height": heights()})
    (height,) = (each for each in found.confounds if each.name == "height")
    assert height.label_score is not None
    assert height.label_score.best.name == "viral"
    assert height.label_score.best.auroc > 0.99
    assert height.label_score.auroc < 0.9  # the mean over the classes, which was all that was said
    assert found.as_json()["shortcuts"][0]["label"] == "viral"
    assert "image headers were not read" in " ".join(found.notes)


def test_an_audit_of_findings_is_filled_as_well(tmp_path: Path) -> None:
    found = audited(tmp_path, coded(6), label=("edema", "mass"))
    assert [(each.label, each.variable) for each in notable(found.shortcuts)] == [("edema", "view")]
    assert set(found.classes) == {"edema", "mass", "edema|mass", "no finding"}


def test_headers_tell_by_aspect_ratio_and_by_depth(tmp_path: Path) -> None:
    """180 images of three classes and many sizes: `covid` is as wide as high, `viral` has 16 bits."""
    rng = np.random.default_rng(7)
    for i in range(180):
        label, height = CLASSES[i % 3], int(rng.integers(30, 60))
        width = height if label == "covid" else int(height * rng.choice([0.7, 1.4]))
        path = tmp_path / "images" / label / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height, width), dtype=np.uint8)
        Image.fromarray(pixels.astype(np.uint16) * 257 if label == "viral" else pixels).save(path)
    manifest = Manifest.read(tmp_path / "images")
    labels = [name.split("/")[0] for name in manifest.image_ids]
    rows = "".join(f"image{i:05d},images/{name}\n" for i, name in enumerate(manifest.image_ids))
    (tmp_path / "m.csv").write_text("image_id,path\n" + rows)
    x = rng.standard_normal((180, 6))
    with Store.open(make_store(tmp_path / "s.h5", x, {"label": labels})) as store:
        found = audit(store, Manifest.read(tmp_path / "m.csv"))
    assert "image headers were not read" not in " ".join(found.notes)
    best = {each.label: each for each in found.shortcuts}
    assert best["covid"].variable in ("aspect ratio", "image size", ALL_VARIABLES)
    assert best["covid"].auroc > 0.95
    assert best["viral"].variable in ("bit depth", "colour mode")
    assert best["viral"].auroc > 0.99


# --- in a Run ---------------------------------------------------------------------------------------------------------


def shortcuts_in(notes: list[str]) -> list[str]:
    return [note for note in notes if note.startswith("shortcut: ")]


def test_a_run_says_what_its_store_knows(tmp_path: Path) -> None:
    x = np.random.default_rng(8).standard_normal((N, 6))
    columns = {"label": labels_of(), "group": [f"p{i // 2}" for i in range(N)], "height": heights()}
    with Store.open(make_store(tmp_path / "s.h5", x, columns)) as store:
        run = train_head(store, HeadSpec.of("ridge"), tmp_path / "run")
    assert shortcuts_in(run.record["notes"])[0].startswith("shortcut: AUROC of viral predicted from height alone: 0.99")


def test_a_run_of_findings_says_it_too_and_takes_no_finding_for_a_shortcut(tmp_path: Path) -> None:
    columns = coded(9)
    columns["effusion"] = columns["edema"]
    x = np.random.default_rng(9).standard_normal((N, 6))
    with Store.open(make_store(tmp_path / "s.h5", x, columns)) as store:
        target = TargetSpec(columns=("edema", "mass"))
        run = train_head(store, HeadSpec(epochs=2), tmp_path / "run", target=target)
    (note,) = shortcuts_in(run.record["notes"])
    assert note.startswith("shortcut: AUROC of edema predicted from view alone: 1.000 [0.9")


# --- on real X-rays ---------------------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.long
def test_a_class_of_real_images_in_another_size_is_named(tmp_path: Path) -> None:
    """300 X-rays of 224 pixels, of which those of one class were saved in sizes of their own."""
    real, rng = shared("data", "kermany224"), np.random.default_rng(10)
    for label in ("NORMAL", "PNEUMONIA"):
        for path in sorted((real / "train" / label).glob("*.jpeg"))[::8][:150]:
            image = Image.open(path)
            if label == "NORMAL":
                image = image.resize((int(rng.integers(150, 300)), int(rng.integers(150, 300))))
            target = tmp_path / "images" / "train" / label / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target)
    manifest = Manifest.read(tmp_path / "images", KERMANY_GROUPS)
    embed(manifest, tmp_path / "s.h5", BackboneSpec(SMALL, "random:0", input_size=32))
    with Store.open(tmp_path / "s.h5") as store:
        found = audit(store, manifest)
    best = found.shortcuts[0]
    assert best.variable in ("image width", "image height", "image size", "aspect ratio", ALL_VARIABLES)
    assert best.auroc > 0.98
