"""Power cuts: after every call of a pass, the worst that POSIX lets a disk hold.

The calls of a real pass are recorded, and played to a model in which data is safe only as of the file's last fsync and
a name only as of the last fsync of its folder. What is not safe may be there, be missing, or be there by half, for each
folder and each changed name on its own. Each such disk is looked at, and laid out for real to run the pass again on it.
Two passes that are recorded were killed just before an fsync, of the new folder and of a part's name, and go on.

What must hold: the store is the old one or the new one; every row that was reported as safe before the cut is in a
whole part; after the pass has returned, the new store is there; the next pass computes exactly what is not on disk and
leaves the store of an uninterrupted pass, byte for byte, and nothing else.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.faults.ground import (
    Figures,
    Scene,
    Tell,
    put,
    run_pass,
    scene_in_new_folders,
    scenes,
    timed,
    whole_names,
    whole_starts,
)
from tests.faults.tap import CHANGES, Call, Tap

Disk = dict[str, bytes]  # as `ground.tree` gives it


def power(work: Path, every: int = 1) -> Figures:
    """Looks at all disks that any cut may leave, and runs the pass again on one in `every` of them."""
    figures = Figures("power")
    n_recovered = 0
    with timed(figures):
        for name, scene, log in _recordings(work):
            for number, (disk, cut) in enumerate(_distinct(scene, log)):
                complaints = cut.wrong(scene, disk)
                if number % every == 0:
                    complaints += scene.recover(put(disk, work / "disk"))
                    n_recovered += 1
                figures.count(f"{name}, after {cut.after}, {cut.kept}", complaints)
        figures.note = f"{n_recovered:,} of them run again"
    return figures


# --- what a pass does, in its order -----------------------------------------------------------------------------------


def _recordings(work: Path) -> Iterator[tuple[str, Scene, list[Any]]]:
    made = scenes(work)
    stopped = made[2]
    without_plan = {name: data for name, data in stopped.before.items() if not name.endswith("plan.json")}
    lost_plan = replace(stopped, name="with its plan lost", before=without_plan)
    for scene in (*made, scene_in_new_folders(work), lost_plan):
        yield scene.name, scene, _record(scene, work)
    for killed_after in ("mkdir s.h5.partial", "replace s.h5.partial/.part-0000000008"):
        folder = put(made[0].before, work / "disk")
        cut_short = _record_here(made[0], folder, work / "log", killed_after)
        yield f"killed after {killed_after}", made[0], cut_short + _record_here(made[0], folder, work / "log", None)


def _record(scene: Scene, work: Path) -> list[Any]:
    return _record_here(scene, put(scene.before, work / "disk"), work / "log", None)


def _record_here(scene: Scene, folder: Path, log_path: Path, dies_after: str | None) -> list[Any]:
    """The calls that change something, and the reports in between; up to one of them, where the pass dies."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def hook(call: Call, run: Callable[[], Any]) -> Any:
        result = run()
        if call.kind in CHANGES:
            os.write(log, _line([call.kind, call.path, call.to, call.data.hex(), call.at]))
        if dies_after and str(call).startswith(dies_after):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def prepare(tell: Tell) -> None:
        Tap(folder, hook).install()

    ran = run_pass(scene.manifest, folder / scene.store, prepare, lambda done: os.write(log, _line(done)))
    os.close(log)
    assert ran.signal == signal.SIGKILL if dies_after else ran.exit_code == 0, ran.message
    with open(log_path, "rb") as file:
        events = [_event(line) for line in file]
    return [*events, "killed" if dies_after else "returned"]


def _line(value: list[str | int] | int) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _event(line: bytes) -> Call | int:
    """A call, or the number of rows that were reported as safe."""
    value = json.loads(line)
    if isinstance(value, int):
        return value
    kind, path, to, data, at = value
    return Call(kind, path, to, bytes.fromhex(data), at)


# --- the disk ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _File:
    now: bytearray = field(default_factory=bytearray)
    safe: bytes = b""


@dataclass(eq=False)
class _Folder:
    now: dict[str, Any] = field(default_factory=dict)
    safe: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Cut:
    """A moment of a pass, and what of the unsafe is kept."""

    after: str
    kept: str
    reported: int
    returned: bool

    def wrong(self, scene: Scene, disk: Disk) -> list[str]:
        complaints = scene.store_is_old_or_new(disk)
        is_new = disk.get(scene.store) == scene.after[scene.store]
        if self.returned and not is_new:
            complaints.append("the pass had returned, and its store is not there")
        lost = set(range(0, self.reported, scene.part_rows)) - whole_starts(disk)
        if lost and not is_new:
            complaints.append(f"rows from {sorted(lost)} on were reported as safe and are lost")
        return complaints + _misplaced(scene, disk)


def _misplaced(scene: Scene, disk: Disk) -> list[str]:
    """Parts of the plan before that lie beside the plan that holds: their rows are other images now."""
    plan = f"{scene.store}.partial/plan.json"
    if disk.get(plan) in (None, b"", scene.before.get(plan)):
        return []
    names = [name for name in whole_names(disk) if name in scene.before]
    return [f"{name} is of an earlier plan" for name in names]


def _distinct(scene: Scene, log: list[Any]) -> Iterator[tuple[Disk, _Cut]]:
    """Every disk a cut may leave, once for each thing that must be true of it."""
    seen: set[Any] = set()
    for cut, disk in _cuts(scene.before, log):
        key = (frozenset(disk.items()), cut.reported, cut.returned)
        if key not in seen:
            seen.add(key)
            yield disk, cut


def _cuts(before: Disk, log: list[Any]) -> Iterator[tuple[_Cut, Disk]]:
    root = _laid_out(before)
    reported, returned, after = 0, False, "nothing"
    for event in log:
        if isinstance(event, Call):
            _play(root, event)
            after = str(event)
        elif isinstance(event, int):
            reported = max(reported, event)
        else:
            returned = event == "returned"
        for kept, disk in _worst(root):
            yield _Cut(after, kept, reported, returned), disk


def _laid_out(disk: Disk) -> _Folder:
    root = _Folder()
    for name, data in disk.items():
        folder, base = _place(root, name.rstrip("/"))
        folder.now[base] = folder.safe[base] = _Folder() if name.endswith("/") else _File(bytearray(data), data)
    return root


def _place(root: _Folder, path: str) -> tuple[_Folder, str]:
    *folders, name = path.split("/")
    for folder in folders:
        root = root.now[folder]
    return root, name


def _play(root: _Folder, call: Call) -> None:
    folder, name = _place(root, call.path)
    node = root if call.path == "." else folder.now.get(name)
    match call.kind:
        case "create":
            if node is None:
                folder.now[name] = _File()
            elif call.data.startswith((b"w", b"x")):
                node.now = bytearray()
        case "write":
            node.now.extend(bytes(max(0, call.at - len(node.now))))
            node.now[call.at : call.at + len(call.data)] = call.data
        case "truncate":
            del node.now[call.at :]
            node.now.extend(bytes(max(0, call.at - len(node.now))))
        case "fsync":
            node.safe = dict(node.now) if isinstance(node, _Folder) else bytes(node.now)
        case "replace" | "rename":
            to_folder, to = _place(root, call.to)
            to_folder.now[to] = folder.now.pop(name)
        case "unlink" | "rmdir":
            del folder.now[name]
        case "mkdir":
            folder.now[name] = _Folder()


_DATA: dict[str, Callable[[_File], bytes]] = {
    "data as synced": lambda file: file.safe,
    "data by half": lambda file: bytes(file.now[: len(file.now) // 2]) + file.safe[len(file.now) // 2 :],
    "all data": lambda file: bytes(file.now),
}


def _worst(root: _Folder) -> Iterator[tuple[str, Disk]]:
    """The disks a cut may leave now: names as of now or as synced, for all, per folder, and for each one alone."""
    changed = list(_changed(root))
    choices: dict[str, set[Any]] = {"names as synced": set(), "all names": {*changed}}
    for folder in {folder for folder, _ in changed}:
        choices[f"names of one folder ({len(choices)})"] = {change for change in changed if change[0] is folder}
    for change in changed:
        choices[f"only the name {change[1]}"] = {change}
        choices[f"all names but {change[1]}"] = {*changed} - {change}
    for kept, names in choices.items():
        for data_kept, data in _DATA.items():
            if data_kept == "data as synced" or _any_unsafe(root):
                yield f"{kept}, {data_kept}", dict(_rendered(root, names, data))


def _changed(folder: _Folder) -> Iterator[tuple[_Folder, str]]:
    for name in sorted(folder.now.keys() | folder.safe.keys()):
        if folder.now.get(name) is not folder.safe.get(name):
            yield folder, name
        for node in {folder.now.get(name), folder.safe.get(name)}:
            if isinstance(node, _Folder):
                yield from _changed(node)


def _any_unsafe(folder: _Folder) -> bool:
    nodes = {*folder.now.values(), *folder.safe.values()}
    return any(_any_unsafe(node) if isinstance(node, _Folder) else node.now != node.safe for node in nodes)


def _rendered(
    folder: _Folder, names: set[Any], data: Callable[[_File], bytes], prefix: str = ""
) -> Iterator[tuple[str, bytes]]:
    for name in sorted(folder.now.keys() | folder.safe.keys()):
        node = (folder.now if (folder, name) in names else folder.safe).get(name)
        if isinstance(node, _Folder):
            yield f"{prefix}{name}/", b""
            yield from _rendered(node, names, data, f"{prefix}{name}/")
        elif node is not None:
            yield prefix + name, data(node)
