"""What `--dry-run` says of a pass before it is made."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from featcache.embedding import embed
from featcache.embedding.estimate import Forecast, forecast
from featcache.errors import FeatcacheError, IdentityMismatch, UsageError
from featcache.images.workers import Decoders, Prepared
from featcache.manifest import Manifest
from featcache.specs import AugmentedCopies, BackboneSpec, DecodeSpec
from tests.conftest import draw
from tests.test_cli import featcache

SPEC = BackboneSpec("test_resnet", "random:0", input_size=32)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here holds of any rate, however little is to be believed of it."""
    monkeypatch.setattr("featcache.embedding.estimate._LEAST_S", 0.05)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    for i in range(20):
        draw(tmp_path / "images" / f"{i}.png", i, size=(300, 200))
    for i in range(5):
        draw(tmp_path / "images" / f"{i}.jpg", i, size=(100, 90), mode="RGB")
    return Manifest.read(tmp_path / "images")


def told(manifest: Manifest, path: Path, spec: BackboneSpec = SPEC, **options: object) -> Forecast:
    return forecast(manifest, {path: spec}, **options)


def test_a_dry_run_counts_times_and_writes_nothing(manifest: Manifest, tmp_path: Path) -> None:
    found = told(manifest, tmp_path / "s.h5")
    assert (found.n_images, found.n_known) == (25, 0)
    assert found.formats == {"PNG 300 x 200 L": 20, "JPEG 100 x 90 RGB": 5}
    assert 0 < found.rate < min(found.decode_rate, found.forward_rate)
    assert found.rate == pytest.approx(1 / (1 / found.decode_rate + 1 / found.forward_rate))
    assert found.limit == ("decode" if found.decode_rate < found.forward_rate else "forward")
    assert found.seconds == pytest.approx(25 / found.rate)
    assert found.memory_bytes > 50e6
    assert found.advice
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_the_store_takes_about_what_was_said(manifest: Manifest, tmp_path: Path) -> None:
    spec = replace(SPEC, name="resnet18", taps=("pooled", "grid"), input_size=96)
    views = AugmentedCopies(2)
    said = told(manifest, tmp_path / "s.h5", spec, augmentations=views).disk_bytes
    embed(manifest, tmp_path / "s.h5", spec, augmentations=views)
    assert said == pytest.approx((tmp_path / "s.h5").stat().st_size, rel=0.2)


def test_images_that_are_in_the_store_already_are_not_counted_as_work(manifest: Manifest, tmp_path: Path) -> None:
    time.sleep(0.15)  # files of this very moment are not remembered
    embed(replace(manifest, image_ids=manifest.image_ids[:10], paths=manifest.paths[:10]), tmp_path / "s.h5", SPEC)
    before = (tmp_path / "s.h5").read_bytes()
    found = told(manifest, tmp_path / "s.h5")
    assert found.n_known == 10
    assert found.seconds == pytest.approx(15 / found.rate)
    assert (tmp_path / "s.h5").read_bytes() == before


def test_a_dry_run_refuses_what_the_pass_would_refuse(manifest: Manifest, tmp_path: Path) -> None:
    embed(manifest, tmp_path / "s.h5", SPEC)
    with pytest.raises(IdentityMismatch, match=r"transform\.input_size"):
        told(manifest, tmp_path / "s.h5", replace(SPEC, input_size=48))
    with pytest.raises(UsageError, match="`compile`=sometimes: auto, on, off is expected"):
        told(manifest, tmp_path / "t.h5", compile="sometimes")


def test_a_dry_run_of_several_backbones_adds_them_up_and_makes_no_folder(manifest: Manifest, tmp_path: Path) -> None:
    paths = {tmp_path / "out" / f"{name}.h5": replace(SPEC, name=name) for name in ("test_resnet", "test_efficientnet")}
    both = forecast(manifest, paths)
    each = [told(manifest, path, spec).disk_bytes for path, spec in paths.items()]
    assert both.disk_bytes == sum(each)
    assert both.free_bytes > 0
    assert not (tmp_path / "out").exists()


def test_what_is_timed_is_the_decoding_of_the_pass_itself(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One decoding for all networks, with their resizes and views."""
    made: list[list[tuple[int, ...]]] = []
    real = Decoders.prepare

    def prepare(self: Decoders, *arguments: object) -> Prepared:
        found = real(self, *arguments)
        made.append([pixels.shape[:3] for pixels in found.pixels or ()])
        return found

    monkeypatch.setattr(Decoders, "prepare", prepare)
    specs = {tmp_path / "a.h5": SPEC, tmp_path / "b.h5": replace(SPEC, input_size=48)}
    forecast(manifest, specs, augmentations=AugmentedCopies(2))
    assert made == [[(3, 32, 32), (3, 48, 48)]] * len(manifest.paths)


def test_a_memory_of_other_weights_does_not_disturb_a_dry_run(manifest: Manifest, tmp_path: Path) -> None:
    embed(manifest, tmp_path / "s.h5", SPEC)
    path = tmp_path / ".s.h5.seen"
    held = json.loads(path.read_text())
    ((_, (answer, _)),) = held["answers"].items()
    answer["identity"]["backbone"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(held))
    (tmp_path / "s.h5").unlink()
    assert told(manifest, tmp_path / "s.h5").n_known == 0


def test_images_that_cannot_be_decoded_are_no_basis_for_a_forecast(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"text")
    with pytest.raises(FeatcacheError, match="none of the images that were tried can be decoded"):
        told(Manifest.read(tmp_path / "images"), tmp_path / "s.h5")


def test_one_image_is_enough(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "a.png", 1)
    found = told(Manifest.read(tmp_path / "images"), tmp_path / "s.h5")
    assert 0 < found.decode_rate < 100  # with the start of its decoder, there being nothing else to time


def test_advice_does_not_name_what_is_asked_already(manifest: Manifest, tmp_path: Path) -> None:
    spec = replace(SPEC, name="resnet18", input_size=160, precision="bfloat16")
    advice = " ".join(told(manifest, tmp_path / "s.h5", spec, decode=DecodeSpec(fast=True)).advice)
    assert "--precision" not in advice
    assert "--decode" not in advice


def test_the_formats_are_those_of_headers_or_what_is_wrong(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"text")
    manifest.paths[:2] = [tmp_path / "text.png", tmp_path / "gone.png"]
    formats = told(manifest, tmp_path / "s.h5", SPEC).formats
    assert formats["other"] == formats["unreadable"] == 1
    assert sum(formats.values()) == len(manifest.paths)


def test_the_command_line_says_it_to_people_and_to_scripts(manifest: Manifest, tmp_path: Path) -> None:
    options = ("--backbone", "test_resnet", "--weights", "random:0", "--input-size", "32", "-o", "s.h5", "--dry-run")
    done = featcache("embed", "images", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("25 images: 80% PNG 300 x 200 L, 20% JPEG", "images/s", "on disk", "of memory", "takes longer"):
        assert text in done.stdout
    found = json.loads(featcache("embed", "images", *options, "--json", cwd=tmp_path).stdout)
    assert found["images"] == len(manifest.paths)
    assert not (tmp_path / "s.h5").exists()
    shutil.rmtree(tmp_path / "images")
    assert featcache("embed", "images", *options, cwd=tmp_path).returncode == 2
