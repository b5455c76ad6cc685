"""The tests, tested: each protection is taken away in a copy of the package, and the test that must notice is run.

    python -m tests.mutants [NAME …]

A mutant replaces an expression or a statement, which is found by its syntax. It is noticed if its test fails on the
copy, by an assertion or an exception; the same tests pass on the package as it is, or noticing would mean nothing.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.faults.ground import Figures, timed

_ROOT = Path(__file__).parents[1]
_TIMEOUT_S = 300


@dataclass(frozen=True)
class Mutant:
    """A protection taken away.

    Attributes:
        file: under featcache/.
        there, instead: an expression or a statement that the file has once, however it is laid out, and the code that
            takes its place.
        test: pytest's address of the test that must notice.
    """

    name: str
    file: str
    there: str
    instead: str
    test: str

    def applied(self, source: str) -> str:
        """The source with the code replaced.

        Raises:
            LookupError: the code is not there exactly once.
        """
        pattern = ast.parse(self.there).body[0]
        sought = pattern.value if isinstance(pattern, ast.Expr) else pattern
        nodes = [node for node in ast.walk(ast.parse(source)) if ast.dump(node) == ast.dump(sought)]
        if len(nodes) != 1:
            raise LookupError(f"{self.name}: {self.file} has `{self.there}` {len(nodes)} times")
        (node,) = nodes
        lines = source.encode("utf-8").splitlines(keepends=True)
        start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
        end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
        data = source.encode("utf-8")
        return (data[:start] + self.instead.encode("utf-8") + data[end:]).decode("utf-8")


_POWER = "test_faults.py::test_a_power_cut_takes_nothing_that_was_reported_as_safe"
_CALLS = "test_faults.py::test_a_call_that_goes_wrong_loses_and_leaves_nothing"
_WRITERS = "test_faults.py::test_of_several_writers_exactly_one_computes"
_STRANGERS = "test_strangers.py"

MUTANTS = (
    Mutant("fsync of files", "durable/files.py", "os.fsync(file.fileno())", "pass", _POWER),
    Mutant("fsync of folders", "durable/files.py", "os.fsync(descriptor)", "pass", _POWER),
    Mutant("a temporary name and a rename", "durable/files.py",
           'path.with_name(f".{short(path.name)}.{secrets.token_hex(8)}.tmp")', "path", _POWER),
    Mutant("fsync of a new folder", "store/parts.py", "(self.path.parent, self.path)", "(self.path,)", _POWER),
    Mutant("fsync on resuming", "store/parts.py", "self._sync()", "pass", _POWER),
    Mutant("fsync before a new plan", "store/parts.py", "durable.sync_folder(self.path)", "pass", _POWER),
    Mutant("fsync of folders above", "durable/files.py", "sync_folder(folder.parent)", "pass", _POWER),
    Mutant("temporary files of killed writers go", "durable/outputs.py", "files.sweep(place)", "pass",
           "test_embed.py::test_what_killed_writers_left_beside_the_store_is_removed"),
    Mutant("errors of the operating system", "errors.py",
           "raise from_os_error(error, doing, path) from error", "raise",
           "test_embed.py::test_an_error_of_the_operating_system_is_never_a_traceback"),
    Mutant("the lock", "durable/locks.py", "fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", _WRITERS),
    Mutant("a lock that was removed is no lock", "durable/outputs.py",
           "files.is_still(lock_path, lock.fileno())", "True",
           "test_store.py::test_a_lock_on_a_file_that_was_removed_is_not_held"),
    Mutant("the digest of parts", "store/parts.py",
           "digest_bytes(durable.read_regular(path)).startswith(name[2])", "True",
           "test_store.py::test_a_damaged_part_does_not_count_as_finished"),
    Mutant("parts of another plan are set aside", "store/parts.py", "stored_plan == self._plan", "True",
           "test_embed.py::test_a_resumed_pass_over_changed_files_keeps_vectors_by_content"),
    Mutant("the identity of a stopped pass", "store/parts.py", "self._check_same_identity(stored_plan)", "pass",
           "test_store.py::test_parts_of_another_plan_are_dropped_and_of_another_identity_refused"),
    Mutant("rows in their place", "store/writer.py", "head.start != next_row", "False",
           "test_embed.py::test_a_part_under_another_parts_name_is_not_taken_for_it"),
    Mutant("NaN as fill value", "store/schema.py",
           "np.nan if kind is None and np.issubdtype(dtype, np.floating) else None", "None",
           "test_store.py::test_rows_that_were_never_written_are_seen"),
    Mutant("NaN is damage", "store/reader.py", "len(bad)", "False",
           "test_store.py::test_rows_that_were_never_written_are_seen"),
    Mutant("no links", "store/validation.py",
           'group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD', "False",
           f"{_STRANGERS} -k link"),
    Mutant("no external storage", "store/validation.py",
           "plan.get_external_count()", "False", f"{_STRANGERS} -k external_storage"),
    Mutant("no virtual datasets", "store/validation.py",
           "layout == h5py.h5d.VIRTUAL", "False", f"{_STRANGERS} -k virtual"),
    Mutant("declared sizes", "store/validation.py",
           "n_bytes > (size := os.path.getsize(path))", "n_bytes < 0 > (size := 0)", f"{_STRANGERS} -k rows"),
    Mutant("chunks", "store/validation.py", "n_bytes > _MAX_CHUNK_BYTES", "False", f"{_STRANGERS} -k chunk"),
    Mutant("filters", "store/validation.py",
           "filters == [h5py.h5z.FILTER_FLETCHER32]", "True", f"{_STRANGERS} -k filters"),
    Mutant("texts of fixed length", "store/validation.py",
           "not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str() or len(dataset.shape) != 1",
           "not isinstance(kind, h5py.h5t.TypeStringID) or len(dataset.shape) != 1", f"{_STRANGERS} -k variable"),
    Mutant("sha256 of arrays", "store/verifying.py",
           "whole and digest.hexdigest() != store.datasets_sha256.get(name)", "False",
           "test_store.py::test_verify_sees_a_value_whose_checksum_is_right"),
    Mutant("write errors kept from HDF5", "store/writer.py",
           "try:\n    durable.write_all(self._raw, data)\nexcept OSError as error:\n    self._error = error",
           "durable.write_all(self._raw, data)",
           "test_store.py::test_a_full_disk_while_publishing_leaves_the_old_store"),
    Mutant("write errors raised in the end", "store/writer.py", "raise self._error", "pass",
           "test_store.py::test_a_full_disk_while_publishing_leaves_the_old_store"),
    Mutant("HDF5 out of reach of signals", "store/parts.py",
           "threading.Thread(target=run, name='hdf5').start()", "run()",
           "test_embed.py::test_a_signal_while_publishing_publishes_all_or_nothing"),
    Mutant("ctime in the stamp", "images/files.py", "status.st_ctime_ns", "status.st_mtime_ns",
           "test_embed.py::test_a_change_whose_time_was_set_back_is_seen"),
    Mutant("stamps in the plan", "embedding/plan.py",
           "[image_id, os.fspath(path), image_id in manifest.refused, *stamp]",
           "[image_id, os.fspath(path), image_id in manifest.refused]",
           "test_embed.py::test_a_resumed_pass_sees_a_file_that_was_overwritten"),
    Mutant("files at rest", "embedding/plan.py", "content and is_at_rest(stamp, planned_ns)", "content",
           "test_embed.py::test_a_file_that_changed_just_before_the_plan_is_read_again"),
    Mutant("changed since the plan", "images/files.py", "_check_unchanged(expected, status)", "pass",
           "test_embed.py::test_a_file_that_changes_after_the_plan_fails_as_changed"),
    Mutant("changed while it is read", "images/files.py",
           "_check_unchanged((len(data), *stamp(status)[1:]), os.fstat(file.fileno()))", "pass",
           "test_images.py::test_a_file_that_grows_while_it_is_read_is_noticed"),
    Mutant("twins in a part", "embedding/filling.py", "(self, self._before)", "(self._before,)",
           "test_embed.py::test_images_with_the_same_bytes_are_computed_once"),
    Mutant("twins in the part before", "embedding/filling.py", "(self, self._before)", "(self,)",
           "test_several.py::test_twins_in_neighbouring_parts_are_computed_once_while_the_first_is_being_written"),
    Mutant("twins in a pass", "embedding/run.py", "output.lookup.add_finished(path, part)", "pass",
           "test_pass.py::test_identical_images_are_computed_once_and_each_has_its_row"),
    Mutant("a device is no damage", "store/validation.py",
           'f"errno = {number}," in str(error) or getattr(error, "errno", None) == number', "False",
           "test_store.py::test_a_device_that_cannot_read_is_not_called_damage"),
    Mutant("the start of each fold", "finetune/cross_validation.py",
           "start.backbone.module.load_state_dict(self._initial)", "pass",
           "test_finetune.py::test_folds_end_in_a_network_of_all_rows_for_the_mean_of_their_best_epochs"),
    Mutant("the head of each fold", "finetune/cross_validation.py", "start.fold_tensors[i]", "start.tensors",
           "test_finetune.py::test_folds_end_in_a_network_of_all_rows_for_the_mean_of_their_best_epochs"),
    Mutant("class weights of training rows", "finetune/unfreeze.py",
           "targets.values[0][train]", "targets.values[0]",
           "test_finetune.py::test_a_fold_whose_held_labels_are_wrong_trains_the_same_network"),
    Mutant("validation rows as they are", "finetune/inputs.py",
           "self._augment if epoch else None", "self._augment",
           "test_finetune.py::test_augmented_images_are_learnt_from_and_plain_ones_scored"),
    Mutant("the bytes of a Run's images", "finetune/inputs.py",
           "pixels.digests[i] != contents[i] or i in pixels.failures", "i in pixels.failures",
           "test_finetune.py::test_images_are_known_by_their_names_and_bytes"),
    Mutant("the bytes of images that are read again", "finetune/inputs.py",
           "decoded.pixels is None or decoded.digest != self.digests[number]", "decoded.pixels is None",
           "test_pixels.py::test_a_file_that_was_replaced_since_is_seen_and_not_learnt_from"),
    Mutant("nothing in a trunk moves", "finetune/loop.py",
           "self._recipe.stages[:stage]", "self._recipe.stages[max(0, stage - 1) : stage]",
           "test_tuning.py::test_a_training_that_was_stopped_anywhere_ends_as_if_it_had_not_been"),
    Mutant("the best of an earlier stage", "finetune/loop.py",
           "self._best = {**self._weights(), **self._best}", "pass",
           "test_tuning.py::test_the_weights_that_are_kept_are_all_of_one_epoch"),
    Mutant("statistics in a checkpoint", "finetune/loop.py",
           'name.rpartition(".")[0] in owners and _is_statistic(name)', "False", "test_tuning.py -k stopped_anywhere"),
    Mutant("moments in a checkpoint", "finetune/loop.py",
           "unfreeze.put_moments(optimizer, moments)", "pass", "test_tuning.py -k stopped_anywhere"),
    Mutant("what was watched in a checkpoint", "finetune/loop.py",
           "moments is not None", "moments", "test_tuning.py -k stopped_anywhere"),
    Mutant("the digest of checkpoints", "finetune/checkpoints.py",
           'match and digest_bytes(data).startswith(match["digest"])', "match",
           "test_checkpoints.py::test_a_damaged_one_is_passed_over_for_the_one_before_it"),
    Mutant("the plan of a stopped training", "finetune/checkpoints.py",
           "stored_plan is not None and self._newest()", "False",
           "test_checkpoints.py::test_another_training_is_refused_with_what_differs"),
    Mutant("statistics stay while work is counted", "embedding/forward.py",
           "module.eval()", "module", "test_finetune.py -k images_as_they_are"),
)  # fmt: skip


def mutants(work: Path, names: tuple[str, ...] = ()) -> Figures:
    """All of them, or those of these names; a try holds if the test noticed."""
    figures = Figures("mutants")
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with timed(figures):
        for mutant in chosen:
            figures.count(mutant.name, _unnoticed(mutant, work / "copy"))
            print(f"mutant: {mutant.name}: {figures.held} of {figures.tried} noticed", file=sys.stderr, flush=True)
        tests = {mutant.test for mutant in chosen}
        for test in sorted(tests):
            code, output = _tested(_copy(work / "copy"), test)
            if code != 0:
                figures.broken.append(f"{test} fails on the package as it is: {output[-500:]}")
    figures.note = f"{len(tests)} tests, which hold without them"
    return figures


def _copy(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("featcache", "tests", "data"):
        shutil.copytree(_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", folder)
    return folder


def _unnoticed(mutant: Mutant, folder: Path) -> list[str]:
    path = _copy(folder) / "featcache" / mutant.file
    try:
        path.write_text(mutant.applied(path.read_text("utf-8")), "utf-8")
    except LookupError as error:
        return [str(error)]
    code, output = _tested(folder, mutant.test)
    ran = re.search(r"\d+ (failed|error)", output) or code < 0
    return [] if code != 0 and ran else [f"{mutant.test} did not notice ({code}): {output[-300:]}"]


def _tested(folder: Path, test: str) -> tuple[int, str]:
    address, *options = f"tests/{test}".split()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", address, *options]
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, "it hung"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        found = mutants(Path(made), tuple(sys.argv[1:]))
        print(found.row(), *found.broken, sep="\n")
        sys.exit(bool(found.broken))
