"""A Run in one file that can be given away: what predicting needs of it, and nothing of the images it was made of.

`MODEL.fcb.zip` is a zip whose members are stored as they are, in a fixed order and with fixed dates, so that the same
Run is the same bytes. Its `bundle.json` has the sha256 of the others. Only members of known names are read, none is
compressed, none is a pickle, and none decides where it is written: what comes from elsewhere is read as such.
"""

import errno
import hashlib
import io
import json
import struct
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from featcache import durable
from featcache.errors import CorruptStore, UnknownFormat, UntrustedFile, UsageError, in_our_words
from featcache.identity import Json, digest_bytes, environment
from featcache.names import printable
from featcache.prediction import run_backbone
from featcache.prediction.predictions import Model
from featcache.runs import WEIGHTS, Run
from featcache.runs.backbone import identity_of, said_by

FORMAT, VERSION = "featcache.bundle", 1
SUFFIX = ".fcb.zip"
README, INDEX, RECORD, HEAD, ONNX = "README.txt", "bundle.json", "run.json", "head.safetensors", "model.onnx"
_TEXT, _TENSORS = 64 << 20, 16 << 30  # bytes
_LARGEST = {README: _TEXT, INDEX: _TEXT, RECORD: _TEXT, HEAD: _TENSORS, WEIGHTS: _TENSORS, ONNX: _TENSORS}  # in order
_UNPACKED = (RECORD, HEAD, WEIGHTS)
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can tell
_MODE, _UNIX = 0o100644, 3
_ENCRYPTED = 0x1
_PIECE = 1 << 20
_MAGIC = b"PK"
# What zipfile raises for bytes that are no zip, or no longer one.
_NO_ZIP = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError, OverflowError)


@dataclass(frozen=True)
class Bundled:
    """A bundle that was written.

    Attributes:
        path: the file.
        members: name -> bytes.
        weights_sha256: digest of the weights that the Run needs.
        has_backbone: whether its weights are inside.
        notes: what a person should know before giving it away.
    """

    path: Path
    members: Mapping[str, int]
    weights_sha256: str
    has_backbone: bool
    notes: tuple[str, ...]

    def as_json(self) -> Json:
        """The answer of `featcache bundle --json`."""
        return {
            "bundle": str(self.path),
            "bytes": self.path.stat().st_size,
            "members": dict(self.members),
            "weights_sha256": self.weights_sha256,
            "has_backbone": self.has_backbone,
            "notes": list(self.notes),
        }


def bundle(
    run: Run, path: Path | str, *, with_backbone: bool = True, weights: str | None = None, with_onnx: bool = False
) -> Bundled:
    """Writes a Run into one file.

    Args:
        run: a Run of any kind of training.
        path: the file, `MODEL.fcb.zip`.
        with_backbone: put the network's weights in, so that nothing else is needed.
        weights: where they are, if the Run's store had them from a file.
        with_onnx: put an ONNX file in, too, see `portable`.

    Raises:
        IdentityMismatch: other weights, or another preprocessing than the Run's.
        UsageError: weights that have to be named, an ONNX file that cannot be made, a path that is a folder, or
            the file of somebody else.
        StoreLocked: another process is writing at `path`.
        CorruptStore: the Run is damaged.
    """
    path = Path(path)
    if path.suffix != ".zip" or path.is_dir():
        raise UsageError(f"-o {path}: give the name of a file that ends with {SUFFIX}, such as model{SUFFIX}.")
    with durable.output(path, _is_bundle, "bundle"):
        return _written(run, path, with_backbone, weights, with_onnx)


def _written(run: Run, path: Path, with_backbone: bool, weights: str | None, with_onnx: bool) -> Bundled:
    model, notes = Model.of(run), list[str]()
    members = {name: _read(run.path / name) for name in (RECORD, HEAD)}
    if with_backbone:
        backbone, _ = run_backbone.backbone_of(run, weights, "cpu", precision="float32")
        members[WEIGHTS] = run_backbone.packed(backbone)
        notes.append(_about_weights(run))
    if with_onnx:
        from featcache.prediction import onnx_export

        exported = onnx_export.build(run, weights=weights)
        members[ONNX] = exported.data
        notes += exported.notes
    if model.spec.kind == "knn":
        n = len(model.tensors["vectors"])
        notes.append(f"a knn head is the vectors of its {n:,} training images and their labels: they are inside")
    with said_by(run):
        members[README] = _readme(run, model, members, notes).encode("utf-8", "backslashreplace")
        members[INDEX] = (json.dumps(_index(run, model, members), indent=1, allow_nan=False) + "\n").encode("ascii")
        digest = str(identity_of(run)["backbone"]["weights_sha256"])
    durable.write_with(path, lambda file: _fill(file, members))
    sizes = {name: len(members[name]) for name in _LARGEST if name in members}
    return Bundled(path, sizes, digest, with_backbone, tuple(notes))


def unpack(path: Path, folder: Path) -> Run:
    """The Run of a bundle, in a folder of its own: its record, its head and, where they are inside, the weights of its
    backbone.

    Args:
        path: the bundle.
        folder: where it is unpacked; made, if it is not there.

    Raises:
        UnknownFormat: it is no bundle, or one of a later version.
        CorruptStore: it is damaged: a member is missing, or not what was written.
        UntrustedFile: it has members that no bundle has, or asks for more than being read.
    """
    with in_our_words("reading", path), durable.open_regular(path) as file, _as_a_zip(path, file):
        archive = zipfile.ZipFile(file)
        contents = _checked(path, archive, file.seek(0, io.SEEK_END))
        members = _members(path, _bytes(archive, contents, INDEX))
        if members.keys() != contents.keys() - {INDEX}:
            raise CorruptStore(f"{path} is damaged: its members are not those that its {INDEX} names.")
        durable.make_folders(folder)
        for name, digest in members.items():
            target = folder / name if name in _UNPACKED else None
            if _copied(archive, contents[name], target) != digest:
                raise CorruptStore(f"{path} is damaged: {name} is not what was written. Get it again.")
    return Run.open(folder)


# --- what is inside ---------------------------------------------------------------------------------------------------


def _is_bundle(path: Path) -> bool:
    """By the names of its members."""
    try:
        with durable.open_regular(path) as file, zipfile.ZipFile(file) as members:
            return INDEX in members.namelist()
    except zipfile.BadZipFile:
        return False


def _read(path: Path) -> bytes:
    with in_our_words("reading", path):
        return durable.read_regular(path)


def _index(run: Run, model: Model, members: Mapping[str, bytes]) -> Json:
    """What the file is, for whoever reads it without featcache, and the digests of the other members."""
    identity, point = identity_of(run), run.record["operating_point"]
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"featcache {environment()['featcache']}",
        "classes": model.classes,
        "task": run.record["task"],
        "positive": run.record["positive"],
        "head": run.record["head"],
        "acts_on": model.tap,
        "tta": model.tta,
        "temperature": model.temperature,
        "operating_point": {"rule": point["rule"], "threshold": point["threshold"]} if point else None,
        "transform": identity["transform"],
        "decode": identity["decode"],
        "identity": identity,
        "identity_sha256": run.record["identity_sha256"],
        "has_backbone": WEIGHTS in members,
        "members": {
            name: {"bytes": len(members[name]), "sha256": digest_bytes(members[name])}
            for name in _LARGEST
            if name in members
        },
    }


def _about_weights(run: Run) -> str:
    """By the record, which knows more than the file that a bundle may have been unpacked to."""
    from featcache.backbones import weights

    source = str(run.record["store"].get("weights"))
    if source.startswith("random:"):
        return f"the backbone's weights are random ones ({source})"
    if source == "hub":
        licence = weights.config_of(identity_of(run)["backbone"]["name"]).get("license") or "not stated"
        return f"the backbone's weights are inside; their licence, as timm states it: {licence}"
    return "the backbone's weights are inside; their licence decides whether they may be shared"


def _readme(run: Run, model: Model, members: Mapping[str, bytes], notes: list[str]) -> str:
    """For whoever is given the file."""
    identity = identity_of(run)
    height, width = identity["transform"]["input_size"]
    kind = "findings, each present or not" if model.has_findings else "classes"
    named = run.record["store"].get("weights") in ("file", "run")
    needs = " --weights FILE" if named and WEIGHTS not in members else ""
    also = ', weights="FILE"' if needs else ""
    inside = {
        RECORD: "what was trained on what, and how well it did",
        HEAD: "the head's weights",
        WEIGHTS: "the backbone's weights, in timm's layout",
        ONNX: "backbone and head for onnxruntime and others: uint8 images in, probabilities out",
        INDEX: "classes, preprocessing, operating point, and the sha256 of every member",
    }
    lines = [
        "A classifier of images, made by featcache.",
        "",
        "This is no medical device. It was not tested for any use on patients, and it knows nothing of images unlike",
        "those it was trained on. Do not diagnose or treat by what it says.",
        "",
        f"It tells {len(model.classes)} {kind}: {', '.join(model.classes)}.",
        f"Backbone {identity['backbone']['name']}, images of {width} x {height}, head: {model.spec.kind}.",
        *_scores(run),
        *(
            line
            for note in [*notes, *run.record["notes"]]
            for line in textwrap.wrap(f"Note: {printable(note).removesuffix('.')}.", 100)
        ),
        "",
        "To use it:",
        "",
        "    pip install featcache",
        f"    featcache predict MODEL{SUFFIX} IMAGES{needs} -o predictions.csv",
        "",
        f"where MODEL{SUFFIX} is the file that this text was in, and IMAGES a folder of images, a CSV with a column",
        "path, or one image; or in Python:",
        "",
        "    import featcache",
        f'    model = featcache.load_run("MODEL{SUFFIX}"{also})',
        '    found = model.predict(["one.png", "two.png"])',
        "    found.classes, found.probabilities",
        "",
        "Inside:",
        "",
        *(f"    {name:<22} {description}" for name, description in inside.items() if name in members or name == INDEX),
        "",
    ]
    return "\n".join(map(printable, lines))


def _scores(run: Run) -> list[str]:
    """How it did on rows that it was not learnt from: AUROC, and what it finds at 0.5 and at the operating point."""
    point = run.record["operating_point"] or {}
    for side, title in (("test", "test images"), ("outer", "held-out images"), ("val", "validation images")):
        scores = run.metrics(side)
        if scores and scores.get("auroc") is not None:
            lines = [f"On {scores['n']:,} {title}:", f"    AUROC {_score(scores, 'auroc')}"]
            two = len(run.record["classes"]) == 2 and run.record["task"] == "classes"
            lines += [f"    {_located(scores)} where p is 0.5 or more"] if two else []
            at = f"    {_located(point[side])} where p is {point['threshold']:.6f} or more" if side in point else ""
            return [
                *lines,
                *([at, f"    (the operating point, {point['rule']})"] if at else []),
                *_of_positive(run, two),
            ]
    return []


def _of_positive(run: Run, two: bool) -> list[str]:
    return [f"    p is the probability of {run.record['positive']}; in brackets 95 % intervals"] if two else []


def _located(scores: Mapping[str, Any]) -> str:
    return f"sensitivity {_score(scores, 'recall')}, specificity {_score(scores, 'specificity')}"


def _score(scores: Mapping[str, Any], name: str) -> str:
    """A number with its interval; none where there are no rows of a class."""
    if (value := scores.get(name)) is None:
        return "unknown"
    interval = scores.get("intervals", {}).get(name)
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _fill(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    """The zip, member by member."""
    with zipfile.ZipFile(durable.Whole(file), "w", zipfile.ZIP_STORED) as archive:
        for name in _LARGEST:
            if name in members:
                info = zipfile.ZipInfo(name, _DATE)
                info.create_system, info.external_attr = _UNIX, _MODE << 16
                archive.writestr(info, members[name])


# --- reading what comes from elsewhere --------------------------------------------------------------------------------


@contextmanager
def _as_a_zip(path: Path, file: BinaryIO) -> Iterator[None]:
    """What zipfile finds wrong, in our words; a file that does not even begin as a zip is none."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UnknownFormat(f"{path} is neither the folder of a Run nor a bundle of one (featcache bundle RUN).")
    try:
        yield
    except (*_NO_ZIP, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which a place before the first byte gives
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise CorruptStore(f"{path} is damaged: {reason}. Get it again.") from error


def _checked(path: Path, archive: zipfile.ZipFile, n_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name, once all that a zip can ask for was looked at.

    Raises:
        UntrustedFile: with the first that no bundle has.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename not in _LARGEST or info.filename in members:
            raise UntrustedFile(f"{path} has a member {info.filename[:80]!r}, which no bundle has, or has once.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise UntrustedFile(f"{path}: {info.filename} is compressed or encrypted; in a bundle nothing is.")
        if info.file_size > min(_LARGEST[info.filename], n_bytes) or info.file_size != info.compress_size:
            raise UntrustedFile(f"{path}: {info.filename} says that it has {info.file_size:,} bytes.")
        members[info.filename] = info
    if sum(info.file_size for info in members.values()) > n_bytes:
        raise UntrustedFile(f"{path}: its members are more than it has bytes.")
    if missing := [name for name in (INDEX, RECORD, HEAD) if name not in members]:
        raise CorruptStore(f"{path} is no whole bundle: it has no {missing[0]}.")
    return members


def _members(path: Path, data: bytes) -> dict[str, str]:
    """The digests of the other members.

    Raises:
        UnknownFormat: a later version, or something else.
        CorruptStore: it is not what was written.
    """
    try:
        index = json.loads(data)
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise UnknownFormat(f"{path} is a zip, and no bundle of a Run.")
        if index.get("version") != VERSION:
            raise UnknownFormat(f"{path} is a bundle of version {index.get('version')!r}: upgrade featcache.")
        return {str(name): str(about["sha256"]) for name, about in index["members"].items()}
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise CorruptStore(f"{path} is damaged: {INDEX}: {reason}. Get it again.") from error


def _bytes(archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], name: str) -> bytes:
    with archive.open(members[name]) as member:
        return member.read()


def _copied(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path | None) -> str:
    """The sha256 of a member, which is written to `target` on the way."""
    sha = hashlib.sha256()

    def pour(file: Any) -> None:
        with archive.open(info) as member:
            while piece := member.read(_PIECE):
                sha.update(piece)
                if file is not None:
                    durable.write_all(file, piece)

    if target is None:
        pour(None)
    else:
        durable.write_with(target, pour)
    return sha.hexdigest()
