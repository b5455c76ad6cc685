"""The tests, tested: each protection is taken away in a copy of the package, and the test that must notice is run.

    python -m tests.mutants [NAME …]

A mutant is an exact replacement of text that is there once. It is noticed if its test fails on the copy, by an
assertion or an exception; the same tests pass on the package as it is, or noticing would mean nothing.
"""

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
        there, instead: the text, which stands there once, and what takes its place.
        test: pytest's address of the test that must notice.
    """

    name: str
    file: str
    there: str
    instead: str
    test: str


_POWER = "test_faults.py::test_a_power_cut_takes_nothing_that_was_reported_as_safe"
_CALLS = "test_faults.py::test_a_call_that_goes_wrong_loses_and_leaves_nothing"
_WRITERS = "test_faults.py::test_of_several_writers_exactly_one_computes"
_STRANGERS = "test_strangers.py"

MUTANTS = (
    Mutant("fsync of files", "durable/files.py", "                os.fsync(file.fileno())\n", "", _POWER),
    Mutant("fsync of folders", "durable/files.py", "        os.fsync(descriptor)\n", "        pass\n", _POWER),
    Mutant("a temporary name and a rename", "durable/files.py",
           'path.with_name(f".{short(path.name)}.{secrets.token_hex(8)}.tmp")', "path", _POWER),
    Mutant("fsync of a new folder", "store/parts.py", "(self.path.parent, self.path)", "(self.path,)", _POWER),
    Mutant("fsync on resuming", "store/parts.py", "                self._sync()\n", "", _POWER),
    Mutant("fsync before a new plan", "store/parts.py",
           "durable.sync_folder(self.path)  # else a power cut may leave", "pass  # else", _POWER),
    Mutant("fsync of folders above", "durable/files.py", "    sync_folder(folder.parent)\n", "", _POWER),
    Mutant("temporary files of killed writers go", "durable/outputs.py",
           "            files.sweep(place)\n", "",
           "test_embed.py::test_what_killed_writers_left_beside_the_store_is_removed"),
    Mutant("errors in our words", "errors.py",
           "        raise from_os_error(error, doing, path) from error\n", "        raise\n",
           "test_embed.py::test_an_error_of_the_operating_system_is_never_a_traceback"),
    Mutant("the lock", "durable/locks.py", "fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", _WRITERS),
    Mutant("a lock that was removed is no lock", "durable/outputs.py",
           "return files.is_still(lock_path, lock.fileno())", "return True",
           "test_store.py::test_a_lock_on_a_file_that_was_removed_is_not_held"),
    Mutant("the digest of parts", "store/parts.py",
           "digest_bytes(durable.read_regular(path)).startswith(name[2])", "True",
           "test_store.py::test_a_damaged_part_does_not_count_as_finished"),
    Mutant("parts of another plan are set aside", "store/parts.py",
           "            if held == self._plan:\n", "            if True:\n",
           "test_embed.py::test_a_resumed_pass_over_changed_files_keeps_vectors_by_content"),
    Mutant("the identity of a stopped pass", "store/parts.py",
           "            self._check_same_identity(held)\n", "",
           "test_store.py::test_parts_of_another_plan_are_dropped_and_of_another_identity_refused"),
    Mutant("rows in their place", "store/writer.py", "if head.start != next_row:", "if False:",
           "test_embed.py::test_a_part_under_another_parts_name_is_not_taken_for_it"),
    Mutant("NaN as fill value", "store/schema.py",
           "fill = np.nan if kind is None and", "fill = None if kind is None and",
           "test_store.py::test_rows_that_were_never_written_are_seen"),
    Mutant("NaN is damage", "store/reader.py", "        if len(bad):\n", "        if False:\n",
           "test_store.py::test_rows_that_were_never_written_are_seen"),
    Mutant("no links", "store/validation.py",
           ".type != h5py.h5l.TYPE_HARD:", ".type == -1:", f"{_STRANGERS} -k link"),
    Mutant("no external storage", "store/validation.py",
           "if plan.get_external_count():", "if False:", f"{_STRANGERS} -k external_storage"),
    Mutant("no virtual datasets", "store/validation.py",
           "if layout == h5py.h5d.VIRTUAL:", "if False:", f"{_STRANGERS} -k virtual"),
    Mutant("declared sizes", "store/validation.py",
           "if n_bytes > (size := os.path.getsize(path)):", "if n_bytes < 0 > (size := 0):", f"{_STRANGERS} -k rows"),
    Mutant("chunks", "store/validation.py", "if n_bytes > _MAX_CHUNK_BYTES:", "if False:", f"{_STRANGERS} -k chunk"),
    Mutant("filters", "store/validation.py",
           "filters == [h5py.h5z.FILTER_FLETCHER32]", "True", f"{_STRANGERS} -k filters"),
    Mutant("texts of fixed length", "store/validation.py",
           "or kind.is_variable_str() or len(dataset.shape) != 1", "or len(dataset.shape) != 1",
           f"{_STRANGERS} -k variable"),
    Mutant("sha256 of arrays", "store/verifying.py",
           "if whole and digest.hexdigest() != store.datasets_sha256.get(name):", "if False:",
           "test_store.py::test_verify_sees_a_value_whose_checksum_is_right"),
    Mutant("write errors kept from HDF5", "store/writer.py",
           "            except OSError as error:\n                self._error = error\n        return len(data)",
           "            except OSError:\n                raise\n        return len(data)",
           "test_store.py::test_a_full_disk_while_publishing_leaves_the_old_store"),
    Mutant("write errors raised in the end", "store/writer.py",
           "            raise self._error\n", "            pass\n",
           "test_store.py::test_a_full_disk_while_publishing_leaves_the_old_store"),
    Mutant("HDF5 out of reach of signals", "store/parts.py",
           "        pool.submit(work).result()\n", "        work()\n",
           "test_embed.py::test_a_signal_while_publishing_publishes_all_or_nothing"),
    Mutant("ctime in the stamp", "images/files.py",
           "return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino",
           "return found.st_size, found.st_mtime_ns, found.st_mtime_ns, found.st_ino",
           "test_embed.py::test_a_change_whose_time_was_set_back_is_seen"),
    Mutant("stamps in the plan", "embedding/plan.py",
           "image_id in manifest.refused, *found]", "image_id in manifest.refused]",
           "test_embed.py::test_a_resumed_pass_sees_a_file_that_was_overwritten"),
    Mutant("files at rest", "embedding/plan.py",
           "if content and is_at_rest(found, planned_ns):", "if content:",
           "test_embed.py::test_a_file_that_changed_just_before_the_plan_is_read_again"),
    Mutant("changed since the plan", "images/files.py", "        _check_unchanged(expected, found)\n", "",
           "test_embed.py::test_a_file_that_changes_after_the_plan_fails_as_changed"),
    Mutant("changed while it is read", "images/files.py",
           "        _check_unchanged((len(data), *stamp(found)[1:]), os.fstat(file.fileno()))\n", "",
           "test_images.py::test_a_file_that_grows_while_it_is_read_is_noticed"),
    Mutant("twins in a part", "embedding/filling.py",
           "for filling in (self, self._before):", "for filling in (self._before,):",
           "test_embed.py::test_images_with_the_same_bytes_are_computed_once"),
    Mutant("twins in the part before", "embedding/filling.py",
           "for filling in (self, self._before):", "for filling in (self,):",
           "test_several.py::test_twins_in_neighbouring_parts_are_computed_once_while_the_first_is_being_written"),
    Mutant("twins in a pass", "embedding/run.py", "            output.known.add_finished(path, part)\n", "",
           "test_pass.py::test_identical_images_are_computed_once_and_each_has_its_row"),
    Mutant("a device is no damage", "store/validation.py",
           'if f"errno = {errno.EIO}," in str(error) or getattr(error, "errno", None) == errno.EIO:', "if False:",
           "test_store.py::test_a_device_that_cannot_read_is_not_called_damage"),
    Mutant("the start of each fold", "finetune/cross_validation.py",
           "        start.backbone.module.load_state_dict(self._initial)\n", "",
           "test_finetune.py::test_folds_end_in_a_network_of_all_rows_for_the_mean_of_their_best_epochs"),
    Mutant("the head of each fold", "finetune/cross_validation.py",
           "self._trainer(start.fold_tensors[i], self.recipe", "self._trainer(start.tensors, self.recipe",
           "test_finetune.py::test_folds_end_in_a_network_of_all_rows_for_the_mean_of_their_best_epochs"),
    Mutant("class weights of training rows", "finetune/unfreeze.py",
           "targets.values[0][train], targets", "targets.values[0], targets",
           "test_finetune.py::test_a_fold_whose_held_labels_are_wrong_trains_the_same_network"),
    Mutant("held rows as they are", "finetune/inputs.py",
           "augment = self._augment if epoch else None", "augment = self._augment",
           "test_finetune.py::test_augmented_images_are_learnt_from_and_plain_ones_scored"),
    Mutant("the bytes of a Run's images", "finetune/inputs.py",
           "if pixels.digests[i] != contents[i] or i in pixels.failures", "if i in pixels.failures",
           "test_finetune.py::test_images_are_known_by_their_names_and_bytes"),
    Mutant("the bytes of images that are read again", "finetune/inputs.py",
           "if decoded.pixels is None or decoded.digest != self.digests[number]:", "if decoded.pixels is None:",
           "test_pixels.py::test_a_file_that_was_replaced_since_is_seen_and_not_learnt_from"),
    Mutant("nothing in a trunk moves", "finetune/loop.py",
           "self._recipe.stages[:stage] for name", "self._recipe.stages[max(0, stage - 1) : stage] for name",
           "test_tuning.py::test_a_training_that_was_stopped_anywhere_ends_as_if_it_had_not_been"),
    Mutant("the best of an earlier stage", "finetune/loop.py",
           "            self._best = {**self._weights(), **self._best}\n", "            pass\n",
           "test_tuning.py::test_the_weights_that_are_kept_are_all_of_one_epoch"),
    Mutant("statistics in a checkpoint", "finetune/loop.py",
           ' or (name.rpartition(".")[0] in owners and _is_statistic(name))', "", "test_tuning.py -k stopped_anywhere"),
    Mutant("moments in a checkpoint", "finetune/loop.py",
           "            unfreeze.put_moments(optimizer, moments)\n", "            pass\n",
           "test_tuning.py -k stopped_anywhere"),
    Mutant("what was watched in a checkpoint", "finetune/loop.py",
           "if moments is not None:  #", "if moments:  #", "test_tuning.py -k stopped_anywhere"),
    Mutant("the digest of checkpoints", "finetune/checkpoints.py",
           'if match and digest_bytes(data).startswith(match["digest"]):', "if match:",
           "test_checkpoints.py::test_a_damaged_one_is_passed_over_for_the_one_before_it"),
    Mutant("the plan of a stopped training", "finetune/checkpoints.py",
           "if stored_plan is not None and self._newest():", "if False:",
           "test_checkpoints.py::test_another_training_is_refused_with_what_differs"),
    Mutant("statistics stay while work is counted", "embedding/forward.py",
           "module.eval()(x)", "module(x)", "test_finetune.py -k images_as_they_are"),
)  # fmt: skip


def mutants(work: Path, names: tuple[str, ...] = ()) -> Figures:
    """All of them, or those of these names; a try holds if the test noticed."""
    figures = Figures("mutants")
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with timed(figures):
        for mutant in chosen:
            figures.count(mutant.name, _unnoticed(mutant, work / "copy"))
            print(f"mutant: {mutant.name}: {figures.val} of {figures.tried} noticed", file=sys.stderr, flush=True)
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
    text = path.read_text("utf-8")
    if (n := text.count(mutant.there)) != 1:
        return [f"its text stands {n} times in {mutant.file}"]
    path.write_text(text.replace(mutant.there, mutant.instead), "utf-8")
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
