"""`predict`: images, or a store of their vectors, through a Run into a CSV.

What is asked of the images is asked of them in `predictor`; here is what is written, and where: nothing is written over
that is not an earlier answer, and a pass that was stopped is gone on with.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache import durable
from featcache.embedding.output import begins_with, failures_path, is_failures
from featcache.errors import FeatcacheError, UsageError, in_our_words
from featcache.identity import Json
from featcache.images.workers import TIMEOUT_S, check_timeout
from featcache.manifest import Manifest
from featcache.prediction.predictions import Predictions
from featcache.prediction.predictor import Predictor, none_was_used
from featcache.runs import RUN_FILES, Table
from featcache.store import Store

_OF_A_PASS = re.compile(r"\.{0,2}[0-9a-f]{12}\.h5")  # a store named by a digest, and what is beside it
_LISTED = 300  # failures in JSON; all are in the CSV


@dataclass(frozen=True)
class Predicted:
    """What was predicted. The counts add up: found = predicted + failed.

    Attributes:
        run: the Run or bundle, as it was named.
        output: the CSV.
        predictions: a row for each image that was found.
        skipped: files that are no images, by reason.
        store: where the vectors are, if they are kept.
        seconds: all of it.
        notes: those of the manifest, how many of the images the Run was trained on, and how many have labels.
    """

    run: Path
    output: Path
    predictions: Predictions
    skipped: Mapping[str, int] = field(default_factory=dict)
    store: Path | None = None
    seconds: float = 0.0
    notes: Sequence[str] = ()

    @property
    def n_failed(self) -> int:
        return len(self.predictions.failures)

    @property
    def n_predicted(self) -> int:
        return len(self.predictions) - self.n_failed

    def as_json(self) -> Json:
        """The answer of `featcache predict --json`."""
        predictions, model, overlap = self.predictions, self.predictions.model, self.predictions.overlap
        point = None
        if predictions.at_operating_point is not None:
            point = {"threshold": model.threshold, "counts": predictions.counts(predictions.at_operating_point)}
        return {
            "run": str(self.run),
            "output": str(self.output),
            "store": str(self.store) if self.store else None,
            "found": len(predictions),
            "skipped": sum(self.skipped.values()),
            "skipped_by_reason": dict(self.skipped),
            "predicted": self.n_predicted,
            "failed": self.n_failed,
            "failures": self._failures(),
            "seen": overlap.n_learnt if overlap else None,
            "trained_on": overlap.n_train if overlap and overlap.is_known else None,
            "chosen_by": overlap.n_val if overlap and overlap.is_known else None,
            "classes": predictions.classes,
            "counts": predictions.counts(predictions.called),
            "operating_point": point,
            "temperature": model.temperature,
            "tta": model.tta,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }

    def _failures(self) -> list[Json]:
        """The first of the images that could not be used."""
        first = list(self.predictions.failures.items())[:_LISTED]
        return [{"image_id": name, "code": code, "reason": reason} for name, (code, reason) in first]


def predict(
    predictor: Predictor,
    output: Path | str,
    *,
    images: Manifest | None = None,
    store: Store | None = None,
    keep: Path | str | None = None,
    **options: Any,
) -> Predicted:
    """Predicts images, or the rows of a store, into a CSV; images that fail are in `OUTPUT.failures.csv`.

    Args:
        predictor: the Run.
        output: the CSV to write. While images are on their way their vectors are in `OUTPUT.partial/`, from where the
            same call goes on after it was stopped.
        images: which.
        store: instead of them, vectors of the Run's identity.
        keep: a store in which the vectors of the images stay.
        options: as in `Predictor.of_images`.

    Raises:
        IdentityMismatch: another network, preprocessing or store than the Run's.
        UsageError: neither images nor a store, an output that is something else already, or images in `keep` that are
            not among these.
        StoreLocked: another process is writing there.
        FeatcacheError: none of the images could be used.
    """
    started = time.perf_counter()
    output, keep = Path(output), Path(keep) if keep is not None else None
    if (images is None) == (store is None):
        raise UsageError("predict needs `images`, or a store of their vectors (`store`).")
    check_timeout(options.get("timeout_s", TIMEOUT_S))
    _check_output(output, [keep, store.path if store else None, images.source if images else None, predictor.path])
    if store is not None and keep is not None:
        raise UsageError(f"`keep`={keep}: the vectors are those of a store already.")
    with durable.output(output, _is_answer, "answer"):
        if store is not None:
            predictions, manifest = predictor.of_store(store), Manifest([], [], {}, store.path)
        else:
            assert images is not None
            predictions, manifest = through_store(predictor, output, images, keep, options)[0], images
        header, rows = predictions.table()
        durable.write_csv(output, header, rows)
        _write_failures(output, predictions, manifest)
        if images is not None:  # what lies there otherwise is of a pass that was stopped
            remove_partial(output)
    kept = store.path if store is not None else keep
    columns = store.columns if store is not None else manifest.columns
    notes = [*manifest.notes, *_about_images(predictions), *_about_labels(predictor, manifest.source, columns)]
    seconds = time.perf_counter() - started
    return Predicted(predictor.path, output, predictions, manifest.skipped, kept, seconds, notes)


def _about_images(predictions: Predictions) -> list[str]:
    return [predictions.overlap.note] if predictions.overlap and predictions.overlap.note else []


def _about_labels(predictor: Predictor, source: Path, columns: Mapping[str, Sequence[str]]) -> list[str]:
    """That images have labels, and what scores them."""
    names = predictor.classes if predictor.model.has_findings else ["label"]
    label_columns = [columns[name] for name in names if name in columns]
    n = sum(any(texts) for texts in zip(*label_columns, strict=True))
    if not n:
        return []
    counted = "1 of these images has a label" if n == 1 else f"{n:,} of these images have labels"
    return [
        f"{counted}, which predictions do not look at: featcache evaluate {predictor.path} {source} scores the Run."
    ]


def through_store(
    predictor: Predictor, output: Path, images: Manifest, keep: Path | None, options: dict[str, Any]
) -> tuple[Predictions, Path]:
    """Predicts images by way of a store of their vectors, from which the same call goes on after it was stopped.

    Args:
        predictor: the Run.
        output: what is made of the predictions; the store is in `OUTPUT.partial/`, until `remove_partial`.
        images: which.
        keep: the store, where it stays.
        options: as in `Predictor.of_images`.

    Returns:
        The predictions, and the path of the store.
    """
    if not len(images):
        raise UsageError(f"found 0 images under {images.source}.")
    path = keep or _partial(output) / f"{predictor.vectors_sha256[:12]}.h5"
    with in_our_words("writing", path):
        durable.make_folders(path.parent)
    with _failures_beside(output, path):
        return predictor.of_images(images, path, only_add=keep is not None, **options)[0], path


def _check_output(output: Path, inputs: Sequence[Path | None]) -> None:
    """Before anything is computed: an answer may be given again, and nothing else is written over."""
    if output.name in ("", "..") or output.is_dir():
        raise UsageError(f"-o {output}: give the name of a file, such as {output / 'predictions.csv'}.")
    if output.name in RUN_FILES and (output.parent / "run.json").exists():
        raise UsageError(f"-o {output} is a file of the Run itself. Choose another place.")
    place = os.path.realpath(output)
    if place in [os.path.realpath(other) for other in inputs if other is not None]:
        raise UsageError(f"-o {output} is what is read, or where vectors are kept. Choose another place.")
    durable.claim(output, _is_answer, "answer")
    durable.claim(failures_path(output), is_failures, "list of failures")


def _is_answer(path: Path) -> bool:
    return begins_with(path, b"image_id,prediction")


def _partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def remove_partial(output: Path) -> None:
    """Takes away what the pass has left, but not what somebody else has put beside it."""
    folder = _partial(output)
    for path in folder.iterdir() if folder.is_dir() else ():
        if _OF_A_PASS.match(path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _write_failures(output: Path, predictions: Predictions, images: Manifest) -> None:
    path = failures_path(output)
    if not predictions.failures:
        if is_failures(path):
            path.unlink()
        return
    durable.write_csv(path, *failures_table(predictions.failures, images))


def failures_table(failures: Mapping[str, tuple[str, str]], images: Manifest) -> Table:
    """The images that could not be used: where they are, and why."""
    file_of = dict(zip(images.image_ids, images.paths, strict=True))
    rows = [[os.fspath(file_of.get(name, "")), *failure, name] for name, failure in failures.items()]
    return ["path", "code", "reason", "image_id"], rows


@contextmanager
def _failures_beside(output: Path, store_path: Path) -> Iterator[None]:
    """Where no image could be used there is no store but a list of failures, which is put where it is looked for."""
    try:
        yield
    except FeatcacheError as error:
        if not none_was_used(error, store_path):
            raise
        listed, failures_file = failures_path(store_path), failures_path(output)
        durable.write_bytes(failures_file, listed.read_bytes())
        remove_partial(output)
        raise FeatcacheError(str(error).replace(str(listed), str(failures_file))) from error
