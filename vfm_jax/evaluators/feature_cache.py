"""Features kept on a local disk, so that the same weights need not look at the same images again.

What a feature depends on is its address, and none of it is a list that somebody must keep complete:

- the program: the text of the lowered computation from the host's batch to the feature (views, encoder, dtype,
  pooling, shapes and layout over the devices, whatever our code was when it was traced), with versions and kind of
  the backend;
- the weights: the bytes of every leaf that this program reads, and of no other. A head that learns on a frozen
  encoder changes nothing;
- the image: its file in its present state and how it is decoded, as in the cache of pictures
  (`data.cache.stamp_of`). Images without a file of their own are read, and told by their pixels.

The first two name a file, the third is the stamp of a record in it. Batches of which every record is there are
neither read nor encoded; of the others the whole batch is, in its old composition, so that every feature is the one
that it would have been, bit for bit.
"""

import contextlib
import hashlib
import importlib.metadata
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.extend import backend, core

from vfm_jax.core.errors import UserError
from vfm_jax.core.types import Batch
from vfm_jax.data.bad import BadSample
from vfm_jax.data.cache import stamp_of
from vfm_jax.data.pipeline import read_record
from vfm_jax.data.record_file import HEAD_BYTES, STAMP_BYTES, RecordFile, check_place
from vfm_jax.data.sources import Source
from vfm_jax.data.wrapped import unwrapped
from vfm_jax.evaluators.interface import Extracted

FORMAT = 1
SUFFIX = ".features"
_CHUNK = 256  # records that a thread looks up at a time

Program = Callable[[Any, Batch], jax.Array]  # (variables, host batch on the devices) -> float32, b d


class FeatureCache:
    """A folder of features; the keywords are the fields of `config.feature_cache`.

    A file that no longer fits beside the others takes the place of those that were not used for longest. A disk that
    is full ends the keeping, and not the run.

    Args:
        path: folder, on a local disk; made where there is none. `~` is the home folder.
        max_gigabytes: all features in it together, at most: 1,000 images of width 768 take 3.1 MB.

    Raises:
        UserError: the folder could not be written, or there are several processes.
    """

    def __init__(self, *, path: str, max_gigabytes: float = 20.0):
        self._folder, self._max_bytes = check_place(path, max_gigabytes, "config.feature_cache")
        if jax.process_count() > 1:  # one would wait for the encoder on the devices of all, another would not call it
            raise UserError(
                f"config.feature_cache is for a run of one process, and this one has {jax.process_count()}. Leave it "
                "out, or evaluate the checkpoint on one machine: vfm eval --workdir=..."
            )

    def check_fits(self, num_images: int, width: int) -> None:
        """Refuses what could never be kept, before anything is computed.

        Args:
            num_images: of all splits.
            width: of a feature.

        Raises:
            UserError: they take more than there may be.
        """
        needed = num_images * (HEAD_BYTES + 4 * width)
        if needed > self._max_bytes:
            raise UserError(
                f"config.feature_cache: features of {num_images:,} images of width {width:,} take {needed / 1e9:.3g} "
                f"GB, above max_gigabytes={self._max_bytes / 1e9:.3g}. Raise it, leave config.feature_cache out, or "
                "evaluate on fewer images."
            )

    def open(
        self,
        program: Program,
        variables: Any,
        batch: Batch,
        source: Source,
        read: Callable[[Sequence[int]], Iterable[Batch]],
    ) -> "KeptFeatures":
        """What is there of one split, one pooling and these weights.

        Args:
            program: makes the features.
            variables: that it reads, on the devices.
            batch: shapes, dtypes and layout of the host's batches.
            source: of the split.
            read: gives batches of the records of these numbers, as the evaluator wants them.
        """
        identity, width = identify(program, variables, batch)
        identity.update(repr((FORMAT, len(source), _where(source))).encode(errors="surrogateescape"))
        file = RecordFile(
            self._folder / f"{identity.hexdigest()}{SUFFIX}", len(source), 4 * width, lambda: self._make_room(file)
        )
        return KeptFeatures(file, width, source, batch["index"].shape[0], read)

    def _make_room(self, file: RecordFile) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            os.utime(file.path)  # it is in use from now on
        sizes = {}
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                sizes[path] = path.stat().st_mtime_ns, path.stat().st_size
        sizes.pop(file.path, None)
        taken = file.num_bytes + sum(size for _, size in sizes.values())
        for path in sorted(sizes, key=lambda path: sizes[path]):
            if taken <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            taken -= sizes[path][1]
        if taken <= self._max_bytes:
            return None
        return f"its {taken / 1e9:.3g} GB are above config.feature_cache.max_gigabytes={self._max_bytes / 1e9:.3g}"


class KeptFeatures:
    """Features of one split that are on the disk, and the batches of the others.

    Attributes:
        found: the rows that are there.
    """

    def __init__(
        self,
        file: RecordFile,
        width: int,
        source: Source,
        batch_size: int,
        read: Callable[[Sequence[int]], Iterable[Batch]],
    ):
        """Looks every record up."""
        self._file, self._width, self._source, self._read = file, width, source, read
        num_records = len(source)
        features = np.zeros((num_records, width), np.float32)
        labels, known = np.full(num_records, -1, np.int32), np.zeros(num_records, np.bool_)
        self._stamps: list[bytes | None] = [None] * num_records

        def look_up(first: int) -> None:
            for i in range(first, min(first + _CHUNK, num_records)):
                labels[i], self._stamps[i] = self._identify(i)
                stamp = self._stamps[i]
                content = None if stamp is None else file.load(i, stamp, 4 * width)
                if content is not None:
                    features[i], known[i] = np.frombuffer(content, "<f4"), True

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
            list(threads.map(look_up, range(0, num_records, _CHUNK)))
        self._missing, stale = self._plan(np.flatnonzero(~known).tolist(), num_records, batch_size)
        known[stale] = False
        index = np.flatnonzero(known).astype(np.int32)
        self.found = Extracted(features[index], labels[index], index)

    def missing(self) -> Iterable[Batch]:
        """The batches that hold the records that are not in `found`."""
        return self._read(self._missing) if self._missing else ()

    def keep(self, rows: Extracted) -> None:
        """Writes features down; the disk's failures end the keeping alone."""
        for i, feature in zip(rows.index.tolist(), rows.features, strict=True):
            stamp = self._stamps[i]
            # Once more, after reading: a file that was replaced meanwhile may be either of the two. What is told by
            # its pixels would have to be decoded for that.
            if stamp is not None and self._of_file(i)[1] in (stamp, None):
                self._file.store(i, stamp, (feature.astype("<f4").tobytes(),))

    def _plan(self, missing: list[int], num_records: int, batch_size: int) -> tuple[list[int], list[int]]:
        """The records to be read, and those of them whose features are to be made."""
        stale, bad = [], []
        for number, of_batch in itertools.groupby(missing, key=lambda i: i // batch_size):
            records = list(of_batch)
            if any(self._can_be_read(i) for i in records):
                stale += range(number * batch_size, min(num_records, (number + 1) * batch_size))
            else:
                bad += records
        # Those that cannot be used are met in every evaluation, for the ledger to name. Behind the others they count
        # as filling, and cost a batch in all, not the batch of each.
        return stale + bad, stale

    def _can_be_read(self, index: int) -> bool:
        try:
            read_record(self._source, index)
        except BadSample:
            return False
        return True

    def _identify(self, index: int) -> tuple[int, bytes | None]:
        """Label, which is today's, and stamp of a record; None where it cannot be read."""
        label, stamp = self._of_file(index)
        if stamp is not None:
            return label, stamp
        try:
            record = read_record(self._source, index)
        except BadSample:
            return -1, None
        told = hashlib.blake2b(record["size"].tobytes(), digest_size=STAMP_BYTES)
        told.update(_bytes(record["image"]))
        return int(record["label"]), told.digest()

    def _of_file(self, index: int) -> tuple[int, bytes | None]:
        """Label and stamp of a record that is an image file on this machine."""
        read = getattr(unwrapped(self._source), "read", None)
        if read is None:
            return -1, None
        stamps: list[bytes | None] = []

        def picture(reading: Any, contents: Any, name: str) -> dict[str, np.ndarray]:
            del contents  # never asked for: nothing is read
            stamps.append(stamp_of(reading, name))
            return {}

        try:
            return int(read(index, picture)["label"]), stamps[0]
        except BadSample:
            return -1, None


def identify(program: Program, variables: Any, batch: Batch) -> tuple[Any, int]:
    """A hash, still open, of a computation and of the leaves that it reads; and the width of what it gives.

    Nothing is compiled and no encoder runs: the program is traced.

    Args:
        program: makes features.
        variables: whole, on the devices or on the host.
        batch: shapes, dtypes and layout.
    """
    traced = jax.jit(program).trace(variables, batch)
    leaves = jax.tree.leaves(variables)
    read = _read_inputs(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.jaxpr.outvars))[: len(leaves)]
    client = backend.get_backend()
    told = (
        traced.lower().as_text(),
        [(leaf.shape, leaf.dtype.name) for leaf, is_read in zip(leaves, read, strict=True) if is_read],
        (jax.__version__, importlib.metadata.version("jaxlib"), client.platform, client.platform_version),
        jax.devices()[0].device_kind,
        # What else changes a compiled program's numbers.
        os.environ.get("XLA_FLAGS", ""),
        jax.config.values["jax_disable_most_optimizations"],
    )
    identity = hashlib.blake2b(repr(told).encode(), digest_size=12)
    for leaf, is_read in zip(leaves, read, strict=True):
        if is_read:
            identity.update(_bytes(np.asarray(leaf)))
    return identity, traced.out_info.shape[-1]


def _read_inputs(jaxpr: core.Jaxpr, wanted: Sequence[bool]) -> list[bool]:
    """Which inputs have a part in the wanted outputs. Looks into what was jitted; anything else reads all it gets."""
    live = {v for v, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted and isinstance(v, core.Var)}
    for equation in reversed(jaxpr.eqns):
        outputs = [v in live for v in equation.outvars]
        if not any(outputs):
            continue
        inputs = [True] * len(equation.invars)
        if equation.primitive.name in ("jit", "pjit"):
            inputs = _read_inputs(equation.params["jaxpr"].jaxpr, outputs)
        live |= {v for v, is_read in zip(equation.invars, inputs, strict=True) if is_read and isinstance(v, core.Var)}
    return [v in live for v in jaxpr.invars]


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _where(source: Source) -> list[str]:
    """The first and the last name of a source: with the number of records, they tell most sources apart.

    Those that they do not, share a file and take each other's place in it.
    """
    return [os.path.abspath(source.name(i)) for i in sorted({0, len(source) - 1})] if len(source) else []
