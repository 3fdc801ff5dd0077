"""Checkpoints that are whole or not there: Orbax arrays, a checksum per leaf, and a manifest written last.

A step is a directory named by its number, with Orbax's files and `manifest.json` (leaves, file sizes, meta). It is
written under another name and renamed when everything is on the disk, so a directory with a number for a name is
complete unless something damaged it later; Orbax itself checks neither its commit marker nor its array data.
"""

import functools
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np

from vfm_jax.core.distributed import from_first
from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.experiment import Variables

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest; raised when an older reader would misread it
UNFINISHED = re.compile(r"\d+\.(writing|deleting)(\..*)?")  # ours; left behind when the process is killed
BLOCK = 2**15  # words mixed at a time, so that the temporaries stay in cache
PLACE = np.uint32(0x9E3779B1)
MIX = ((np.uint32(16), np.uint32(0x85EBCA6B)), (np.uint32(13), np.uint32(0xC2B2AE35)))  # shift, factor

PathLike = str | os.PathLike[str]
Log = Callable[[str], None]
T = TypeVar("T")
Leaves = dict[str, Any]  # array, or its shape and dtype, by slash-joined name


_warn = logging.getLogger(__name__).warning


class SavedParams(NamedTuple):
    """What a checkpoint gives to start from or to evaluate, without its optimizer.

    Attributes:
        params: nested dict of numpy arrays.
        ema: likewise, their running average; {} where the run kept none.
        extra: what the objective carried untrained: batch statistics by network, teacher, centre, queue.
        meta: what was saved beside the state.
    """

    params: dict[str, Any]
    ema: dict[str, Any]
    extra: dict[str, Any]
    meta: dict[str, Any]

    @property
    def result(self) -> Variables:
        """What the run is evaluated by: the average where there is one, a teacher where the method has one."""
        return Variables(self.ema or self.params, self.extra).result


class _Damaged(Exception):
    """This step cannot be used; the text says why in one line."""


class Checkpoints:
    """The saved steps of one run, in one directory of their own.

    Use it as a context manager: leaving it waits for the save under way, also when an exception leaves it.
    A save that failed raises `TrainingError` with its own step from the next call (`save`, `wait`, or leaving).

    Args:
        directory: on a local or mounted disk; made at the first save.
        keep_last: newest steps kept.
        keep_every_steps: steps divisible by this are kept for good.
        log: takes one line for each step that is passed over, replaced or cleared away.

    Raises:
        UserError: nothing would be kept, or the directory is the address of an object store.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        keep_last: int = 2,
        keep_every_steps: int | None = None,
        log: Log = _warn,
    ) -> None:
        if keep_last < 1 or (keep_every_steps is not None and keep_every_steps < 1):
            raise UserError(
                f"keep_last is {keep_last} and keep_every_steps is {keep_every_steps}; expected 1 or more "
                "(the newest step is always kept), or None for keep_every_steps."
            )
        if "://" in str(directory):
            raise UserError(f"Checkpoints go to a local or mounted directory; found {directory}. Mount the bucket.")
        self.directory = pathlib.Path(directory).absolute()
        self._keep_last = keep_last
        self._keep_every_steps = keep_every_steps
        self._log = log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self._good: set[int] = set()  # written or restored by this object
        self._rejected: set[int] = set()  # passed over by `restore`
        self._cleared = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(together=error is None)  # an error may be this process's alone: no other would come
        except TrainingError as failure:
            if error is None:
                raise
            self._log(str(failure))  # the exception that is leaving says more than this one
        finally:
            self._thread.shutdown()

    def steps(self) -> list[int]:
        """Complete steps, ascending; array data is not read, so a flipped bit in it is found by `restore` alone."""
        return [step for step in _numbers(self.directory) if step not in self._rejected and self._complete(step)]

    def latest_step(self) -> int | None:
        """The newest of `steps()`, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, meta: Mapping[str, Any], *, wait: bool = False) -> None:
        """Saves `state` under `step` in the background; the caller waits for a copy of it, no more.

        A step that this object has saved or restored is not written again. One that lies there otherwise (passed
        over by `restore`) is kept beside the new one as `STEP.replaced`.

        Args:
            step: number of the step.
            state: tree of arrays, sharded in any way; its buffers may be donated as soon as this returns.
            meta: what JSON can hold: stage, data position, recipe, versions.
            wait: return only when the step is on the disk.

        Raises:
            TrainingError: this save cannot begin, or the one before failed; names the step and the cause.
        """
        self.wait()
        if step in self._good:
            return
        leaves = _unique_leaves(state)
        meta = json.loads(json.dumps(dict(meta)))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clear_unfinished()
            self._check_space(leaves)
            if jax.process_count() == 1:
                # Numpy copies: the first save's imports, and all of its work, then stay off the training thread.
                copies = {name: np.array(leaf) for name, leaf in _started_to_host(leaves).items()}
                future = self._thread.submit(lambda: self._finish(step, meta, *self._start(step, copies)))
            else:  # both Orbax and the checksums talk to the other processes, in the order of the main thread
                started = self._start(step, leaves)
                future = self._thread.submit(self._finish, step, meta, *started)
        except Exception as error:
            raise self._failure(step, error) from error
        self._pending = step, future
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when the save under way, if any, is on the disk.

        Raises:
            TrainingError: it failed; names its step and the cause.
        """
        self._wait(together=True)

    def _wait(self, *, together: bool) -> None:
        if self._pending is None:
            return
        step, future = self._pending
        error = future.exception()
        self._pending = None
        if together and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"checkpoint {step}")  # process 0 has written the manifest
        if error is not None:
            raise self._failure(step, error) from error
        self._good.add(step)

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The newest sound step, or the given one, as (state, meta), or None when no step was ever completed.

        A damaged step is passed over with one line and left where it is: the fault may be the disk's or the
        network's of this moment, and if all were moved away the next start would silently begin at zero.

        Args:
            abstract_state: tree of `jax.ShapeDtypeStruct`, each with the sharding to restore to (on any mesh; a
                leaf without one comes back as numpy).
            step: the only one to try.

        Raises:
            UserError: the checkpoint has other leaves, shapes or dtypes; nothing is ever cast.
            TrainingError: there are steps, and none is sound.
        """
        self.wait()
        wanted = _unique_leaves(abstract_state)
        numbers = from_first(_numbers(self.directory)) if step is None else [step]
        for step in reversed(numbers):
            path = self.directory / str(step)
            try:
                manifest = _agreed(functools.partial(_read_manifest, path))
                _check_same_leaves(path, manifest["leaves"], wanted)
                arrays = _read_arrays(path, manifest, wanted)
            except _Damaged as reason:
                self._rejected.add(step)
                self._log(f"Checkpoint {path} is not usable ({reason}); trying the step before.")
                continue
            self._good.add(step)
            placed = [_place(arrays.pop(name), leaf) for name, leaf in wanted.items()]
            return jax.tree.unflatten(jax.tree.structure(abstract_state), placed), manifest["meta"]
        if numbers:
            raise TrainingError(
                f"None of the checkpoints in {self.directory} is usable (steps {', '.join(map(str, numbers))}; "
                "the lines above say why).\nNothing was changed there. Bring back a copy of one of them, or start "
                "again with another --workdir."
            )
        return None

    def _complete(self, step: int) -> bool:
        try:
            _read_manifest(self.directory / str(step))
        except _Damaged:
            return False
        return True

    def _clear_unfinished(self) -> None:
        """Removes what interrupted saves left behind; not before a save of ours, so that evaluation only reads."""
        if self._cleared or jax.process_index() != 0:
            return
        self._cleared = True
        for path in _children(self.directory):
            if UNFINISHED.fullmatch(path.name):
                self._log(f"Removing {path}: left by a save that was interrupted or failed.")
                shutil.rmtree(path, ignore_errors=True)

    def _check_space(self, leaves: Leaves) -> None:
        """A full disk is said at once, and not by the next step's save."""
        needed, free = sum(leaf.nbytes for leaf in leaves.values()), shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(f"the disk has {free / 1e6:,.0f} MB free and the state takes {needed / 1e6:,.0f} MB")

    def _start(self, step: int, leaves: Leaves) -> tuple[dict[str, Any], Any]:
        """The manifest's entry of every leaf, and Orbax's writing of the arrays, under way."""
        ocp = _orbax()
        path = self.directory / f"{step}.writing"
        sums = _checksums(leaves)
        entries = {
            name: dict(shape=list(leaf.shape), dtype=str(leaf.dtype), checksum=sums[name])
            for name, leaf in leaves.items()
        }
        context = ocp.Context()
        context.array.saving.use_compression = False  # weights hardly compress; scripts/bench/checkpoint.py
        with context:
            return entries, ocp.save_async(path, _nested(_non_empty(leaves)), overwrite=True)

    def _finish(self, step: int, meta: dict[str, Any], entries: dict[str, Any], writing: Any) -> None:
        writing.result()
        if jax.process_index() != 0:
            return
        path, final = self.directory / f"{step}.writing", self.directory / str(step)
        sizes = {str(file.relative_to(path)): _flush(file) for file in sorted(path.rglob("*")) if file.is_file()}
        content = dict(format=FORMAT, step=step, meta=meta, leaves=entries, files=sizes)
        (path / MANIFEST).write_text(json.dumps(dict(crc32=_content_crc(content), content=content)))
        for changed in (path / MANIFEST, *(folder for folder in path.rglob("*") if folder.is_dir()), path):
            _flush(changed)
        if final.exists():
            aside = _free_name(final, "replaced")
            self._log(f"Checkpoint {final} is written anew; the one that lay there is kept as {aside.name}.")
            final.rename(aside)
        path.rename(final)
        _flush(self.directory)
        self._rejected.discard(step)
        self._prune()

    def _prune(self) -> None:
        """Deletes what is old and sound; a step that was passed over is neither counted nor deleted."""
        for step in self.steps()[: -self._keep_last]:
            if self._keep_every_steps is None or step % self._keep_every_steps:
                path = self.directory / f"{step}.deleting"
                try:
                    (self.directory / str(step)).rename(path)  # a half-deleted step has no number for a name
                    shutil.rmtree(path)
                except OSError as error:
                    self._log(f"Could not delete the old checkpoint {path}: {_cause(error)}.")

    def _failure(self, step: int, error: BaseException) -> TrainingError:
        """The error to raise; what was written of the step is removed, so that a full disk has room again.

        Orbax's other writers may still be at it and leave more; the next save looks again.
        """
        self._cleared = False
        if jax.process_index() == 0:
            for path in _children(self.directory):
                if path.name.startswith(f"{step}.writing"):
                    shutil.rmtree(path, ignore_errors=True)
        latest = self.latest_step()
        kept = "No earlier step is saved." if latest is None else f"Step {latest} is saved and untouched."
        return TrainingError(f"Could not save step {step} in {self.directory}: {_cause(error)}.\n{kept}")


def restore_params(path: PathLike, *, log: Log = _warn) -> SavedParams:
    """The parameters in a checkpoint, their average and what the objective carried; the optimizer is not read.

    Args:
        path: one step; or a directory of steps, of which the newest sound one is taken; or a directory with one
            directory of steps in it, at most two levels down (a run, its `checkpoints/`).
        log: takes one line for each step that is passed over.

    Raises:
        UserError: there is no checkpoint, none is sound, or it has no parameters.
    """
    path = pathlib.Path(path).absolute()
    for candidate in map(pathlib.Path, from_first([str(candidate) for candidate in _candidates(path)])):
        try:
            trees, meta = _read_parts(candidate, ("params", "ema", "extra"))
            return SavedParams(trees["params"], trees["ema"], trees["extra"], meta)
        except _Damaged as reason:
            log(f"Checkpoint {candidate} is not usable ({reason}).")
    raise UserError(f"No usable checkpoint in {path}; the lines above say why. Give another step or another copy.")


def restore_profiles(path: PathLike) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The tracked averages by name in the checkpoint of one step, what the objective carried, and the meta.

    Raises:
        UserError: the step is not sound, or its run tracked no averages.
    """
    path = pathlib.Path(path).absolute()
    try:
        trees, meta = _read_parts(path, ("profiles", "extra"))
    except _Damaged as reason:
        raise UserError(f"Checkpoint {path} is not usable ({reason}).") from None
    return trees["profiles"], trees["extra"], meta


def _read_parts(path: pathlib.Path, parts: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts of the state of one step, as nested dicts of arrays (empty where it has none), and its meta.

    Raises:
        UserError: it has nothing of the first of them.
    """
    manifest = _agreed(functools.partial(_read_manifest, path))
    wanted = {
        name: jax.ShapeDtypeStruct(entry["shape"], entry["dtype"])
        for name, entry in manifest["leaves"].items()
        if name.split("/")[0] in parts
    }
    if not any(name.startswith(f"{parts[0]}/") for name in wanted):
        raise UserError(f"{path} has no {parts[0]}; its leaves are {', '.join(list(manifest['leaves'])[:5])}.")
    trees = _nested(_read_arrays(path, manifest, wanted))
    return {part: trees.get(part, {}) for part in parts}, manifest["meta"]


def _candidates(path: pathlib.Path) -> list[pathlib.Path]:
    """The steps that `path` may mean, newest first."""
    if (path / MANIFEST).is_file():
        return [path]
    folders = [path, *(p for pattern in ("*", "checkpoints/*") for p in sorted(path.glob(pattern)))]
    found = [folder for folder in folders if _numbers(folder)]
    if not found and path.name.isdigit() and path.is_dir():
        return [path]  # a step without its manifest
    if not found:
        raise UserError(f"No checkpoint in {path}. Expected a run's directory, its checkpoints/, or one step in it.")
    if len(found) > 1 and found[0] != path:
        raise UserError(f"{path} has several sets of checkpoints. Name one: {', '.join(map(str, found))}.")
    return [found[0] / str(step) for step in reversed(_numbers(found[0]))]


def checksum(array: np.ndarray | jax.Array) -> int:
    """32-bit sum of an array's elements, each mixed with its place; the same on any number of devices.

    Σ_i mix(bits(x_i) ⊕ 0x9E3779B1·i) mod 2³², i the flat index in the whole array, mix the finalizer of MurmurHash3
    (Appleby, 2011). mix is a bijection, so one changed element always changes the sum; two sign bits flipped together
    cancel once in 2·10⁸ (measured; every second time if mix has but one shift). Of an array that several processes
    hold, this is this process's share. It guards against damage, not against intent.

    On the host and not under `jit`: for a state of 400 leaves the CPU compiler takes 3 s, this 20 ms.
    """
    return sum(_piece_checksum(piece, starts, array.shape) for piece, starts in _pieces(array)) % 2**32


def _pieces(array: np.ndarray | jax.Array) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Each part of the array once, with the index of its first element."""
    if isinstance(array, jax.Array):
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                yield np.asarray(shard.data), tuple(cut.start or 0 for cut in shard.index)
    elif jax.process_index() == 0:  # every process holds the whole
        yield array, (0,) * array.ndim


def _piece_checksum(piece: np.ndarray, starts: tuple[int, ...], shape: tuple[int, ...]) -> int:
    if piece.size == 0:
        return 0
    # Rows of elements that follow one another in the whole array; the whole itself is one row.
    if piece.shape == shape:
        rows, first = piece.reshape(1, -1), np.zeros(1, np.int64)
    else:
        axes = [start + np.arange(n) for start, n in zip(starts, piece.shape[:-1], strict=False)]
        place = np.ix_(*axes, np.array(starts[-1:]))
        rows, first = piece.reshape(-1, piece.shape[-1]), np.ravel_multi_index(place, shape).reshape(-1)
    words = np.ascontiguousarray(rows).view(f"u{min(piece.itemsize, 4)}")
    first = first * (words.shape[1] // rows.shape[1])  # in words: 64-bit elements have two
    total = 0
    height = max(1, BLOCK // words.shape[1])
    for column in range(0, words.shape[1], BLOCK):
        ramp = np.arange(column, min(column + BLOCK, words.shape[1])).astype(np.uint32) * PLACE
        for row in range(0, len(words), height):
            block = words[row : row + height, column : column + BLOCK]
            mixed = (first[row : row + height].astype(np.uint32) * PLACE)[:, None] + ramp
            mixed ^= block
            for shift, factor in MIX:
                mixed ^= mixed >> shift
                mixed *= factor
            mixed ^= mixed >> MIX[0][0]
            total += int(np.add.reduce(mixed, axis=None, dtype=np.uint32))
    return total


def _checksums(leaves: Leaves) -> dict[str, int]:
    """The checksum of every leaf, over all processes."""
    sums = np.array([checksum(leaf) for leaf in leaves.values()], np.uint32)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    return dict(zip(leaves, sums.tolist(), strict=True))


def _agreed(function: Callable[[], T]) -> T:
    """The value of `function`, or `_Damaged` in every process where it is raised in one."""
    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    outcome: list[T] = []
    reason = _Damaged("another process could not read it")
    try:
        outcome.append(function())
    except _Damaged as error:
        reason = error
    if not multihost_utils.process_allgather(np.array(bool(outcome))).all():
        raise reason
    return outcome[0]


@functools.cache
def _orbax() -> Any:
    """Orbax, imported at its first use (half a second), without its running commentary on stderr."""
    from absl import logging as absl_logging

    for logger in (absl_logging.get_absl_logger(), logging.getLogger("asyncio")):
        logger.addFilter(_not_from_orbax)
    sys.unraisablehook = functools.partial(_without_closed_loops, sys.unraisablehook)
    from orbax.checkpoint import v1

    return v1


def _without_closed_loops(report: Callable[[Any], Any], unraisable: Any) -> None:
    """Passes on all but what TensorStore says when one array's failure has ended the writing of the others."""
    if not (unraisable.object is None and str(unraisable.exc_value) == "Event loop is closed"):
        report(unraisable)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    """What matters in these lines is also raised, and is said in our words."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname and "tensorstore" not in record.getMessage()


def _read_manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest of a step whose files are all there, in their full length."""
    try:
        outer = json.loads((path / MANIFEST).read_bytes())
        content = outer["content"]
        sound = outer["crc32"] == _content_crc(content)
    except FileNotFoundError:
        raise _Damaged(f"half-made: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Damaged(f"{MANIFEST} cannot be read: {_cause(error)}") from None
    if not sound:
        raise _Damaged(f"{MANIFEST} is damaged")
    if content["format"] > FORMAT:
        raise UserError(f"{path} was written by a newer vfm-jax (format {content['format']}); upgrade to read it.")
    for name, size in content["files"].items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            raise _Damaged(f"file {name}: {_cause(error)}") from None
        if found != size:
            raise _Damaged(f"file {name} has {found} bytes instead of {size}")
    return content


def _read_arrays(path: pathlib.Path, manifest: dict[str, Any], wanted: Leaves) -> Leaves:
    """The wanted leaves, checked against their checksums.

    One process reads them into host memory, each stored byte once however the devices will share it; several
    processes read straight into the wanted shardings.
    """
    ocp = _orbax()
    targets = {
        name: leaf if _spans_processes(leaf) and leaf.size else np.empty(leaf.shape, leaf.dtype)
        for name, leaf in wanted.items()
    }
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    stored = _non_empty(targets)

    def load() -> Leaves:
        try:
            # In a thread, for a notebook's main one has an event loop running and Orbax needs its own.
            with ThreadPoolExecutor(1) as thread:
                return targets | thread.submit(_load, context, path, stored).result()
        except MemoryError:
            raise
        except Exception as error:
            raise _Damaged(f"its arrays cannot be read: {_cause(error)}") from error

    arrays = _agreed(load)  # before the checksums, which all processes add up together
    for name, value in _checksums(arrays).items():
        if value != manifest["leaves"][name]["checksum"]:
            raise _Damaged(f"leaf {name} does not match its checksum")
    return arrays


def _spans_processes(leaf: Any) -> bool:
    return jax.process_count() > 1 and getattr(leaf, "sharding", None) is not None


def _load(context: Any, path: pathlib.Path, targets: Leaves) -> Leaves:
    with context:
        return named_leaves(_orbax().load(path, _nested(targets))) if targets else {}


def _place(array: np.ndarray | jax.Array, leaf: Any) -> np.ndarray | jax.Array:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or isinstance(array, jax.Array):
        return array
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _check_same_leaves(path: pathlib.Path, entries: dict[str, Any], wanted: Leaves) -> None:
    """Refuses a checkpoint of another model or optimizer."""
    found = {name: f"{entry['dtype']} {tuple(entry['shape'])}" for name, entry in entries.items()}
    expected = {name: f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}" for name, leaf in wanted.items()}
    different = [name for name in expected | found if expected.get(name) != found.get(name)]
    if different:
        lines = [
            f"  {name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
            for name in different[:3]
        ]
        raise UserError(
            f"Checkpoint {path} is of another model or optimizer; {len(different)} leaves differ:\n"
            + "\n".join(lines)
            + f"\nGive another --workdir, or begin a new run from it there with start_from={str(path)!r}."
        )


def _unique_leaves(tree: Any) -> Leaves:
    named = named_leaves(tree)
    assert len(named) == len(jax.tree.leaves(tree)), "two leaves of the state have the same name"
    return {name: leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for name, leaf in named.items()}


def _started_to_host(leaves: Leaves) -> Leaves:
    """The same leaves, their transfers to the host all under way."""
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return leaves


def _non_empty(leaves: Leaves) -> Leaves:
    """Orbax refuses arrays without elements; the manifest's entry says all there is to say of them."""
    return {name: leaf for name, leaf in leaves.items() if 0 not in leaf.shape}


def _nested(leaves: Leaves) -> dict[str, Any]:
    """Nested dicts from slash-joined names: plain on the disk, whatever classes the state is made of."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
    return tree


def _children(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _numbers(directory: pathlib.Path) -> list[int]:
    """Numbers that are names of directories in `directory`, ascending."""
    return sorted(int(p.name) for p in _children(directory) if re.fullmatch(r"0|[1-9]\d*", p.name) and p.is_dir())


def _free_name(path: pathlib.Path, suffix: str) -> pathlib.Path:
    names = (path.with_name(f"{path.name}.{suffix}{'' if n == 1 else f'-{n}'}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _flush(path: pathlib.Path) -> int:
    """Sees a file or directory onto the disk; gives its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _content_crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _cause(error: BaseException) -> str:
    """One short line; of TensorStore's pages the operating system's own words."""
    text = str(error)
    system = re.search(r"os_error_code='(\d+)'", text)
    if system:
        return os.strerror(int(system.group(1)))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return line[:160].rstrip(".")
