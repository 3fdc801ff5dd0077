"""Host batches in exact order: grain reads ahead in threads or worker processes, the order is ours.

Batch k is a pure function of the arguments and k. The position in the data is therefore the step alone: it does not
depend on how many threads, workers or processes read, and nothing else needs saving.

A batch is read in parts of 16 to 64 rows (`_part_rows`), so that all threads and workers share the next batch
instead of each making a batch of its own: the first batch comes sooner, and less is held in memory.

A record that cannot be used (`data.bad.BadSample`) is replaced in training by another, chosen by the order alone, and
is not valid in evaluation; `data.ledger` keeps account. Whatever else fails ends the run.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Self

import numpy as np

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.data.bad import REASONS, BadSample
from vfm_jax.data.ledger import MAX_BAD_RATIO, Ledger, Tally
from vfm_jax.data.order import EvaluationOrder, TrainingOrder
from vfm_jax.data.sources import Source
from vfm_jax.data.timing import PARTS, Stopwatch

_PART_ROWS = (16, 64)  # of a part, at least and at most
_PART_BYTES = 2**18  # of a part, where that many rows have them: see `_part_rows`
_QUICK_SECONDS = 1.2e-4  # a record, read by one thread: below it threads only hinder each other
_PATIENCE_SECONDS = 0.1  # of slow parts in a row, after which threads no longer wait for each other
_KNOWN_ORDERS = 16  # batches in the making at a time whose order is kept: as many as there may be threads
_MAX_THREADS = 16
_SIGTERM_GRACE_SECONDS = 60
_ENDING = {signal.SIGINT, signal.SIGTERM}

HOST_FIELDS = ("bad", "wanted")  # of a batch, for the ledger: no device sees them

HostBatch = dict[str, np.ndarray]


class HostBatches(Iterator[HostBatch]):
    """Batches of this process's rows. Close it, or use it in a `with`, to end its threads and workers at once.

    Attributes:
        seconds: spent on reading, in all threads and workers together, by part (`data.timing.PARTS` and "other").
    """

    def __init__(self, batches: Any, tally: Tally):
        self.seconds = dict.fromkeys((*PARTS, "other"), 0.0)
        self._batches: Iterator[HostBatch] = batches
        self._finalizer = weakref.finalize(self, batches.close)
        self._started = False
        self._tally = tally

    def __next__(self) -> HostBatch:
        batch = self._next()
        for part, spent in zip(self.seconds, batch.pop("seconds").sum(axis=0), strict=True):
            self.seconds[part] += float(spent)
        try:
            self._tally.take(batch)
        except TrainingError:
            self.close()
            raise
        return batch

    def _next(self) -> HostBatch:
        try:
            if self._started:
                return next(self._batches)
            self._started = True
            with _signals_held():
                return next(self._batches)
        except TrainingError:
            self.close()
            raise
        except RuntimeError as error:
            self.close()
            if "Worker process was terminated" not in str(error):
                raise
            raise TrainingError(
                f"A data worker process ended by itself ({str(error).split('. ')[0]}).\n"
                "Exit code -9 is most often the system out of memory: lower config.data.workers (0 uses threads), or "
                "the batch size. Start again to resume."
            ) from error

    def close(self) -> None:
        """Ends threads and worker processes; a second call does nothing."""
        self._finalizer()
        self._batches = iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    stage: int = 0,
    workers: int = 0,
    threads: int | None = None,
    repeats: int = 1,
    max_bad_ratio: float = MAX_BAD_RATIO,
    ledger: Ledger | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> HostBatches:
    """Shuffled batches without end: every record exactly once an epoch, each epoch in another order.

    Fields: `image`, `size`, `label`, `index` as the source has them, with the batch axis first, and its further
    `fields`; `epoch` int32 (b,), how often the record was drawn before; `valid` bool (b,), always true; where it has
    texts, `text` int32 (b, l), the one drawn, beside all of them. A batch may span two epochs. The rows of all
    processes, put one after the other, are the batch that one process alone would have read.

    Two fields are for the host alone (`HOST_FIELDS`): `wanted` int32 (b,), the record that was due, and `bad` int8
    (b,), which is 0, or 1 + the place in `data.bad.REASONS` of why that record could not be used; another then stands
    in its row, the same one whoever reads it and whenever.

    Args:
        source: where the records come from.
        batch_size: rows of a batch over all processes.
        seed: of the order.
        stage: number of the stage; each has its own order.
        workers: processes that read, beside this one; 0 reads in threads of this process.
        threads: reading at a time; as many as there are cores, up to 16, by default.
        repeats: how often each record is taken at once, with another draw each time; see `order.TrainingOrder`.
        max_bad_ratio: share of the records that may be bad, in [0, 1]; 0 stops at the first. See `ledger.Tally`.
        ledger: where bad records are written down; in memory alone by default.
        start_step: number of the first batch: where a resumed run goes on.
        process_index: number of this process.
        process_count: of how many.

    Raises:
        UserError: the batch does not divide over the processes.
        TrainingError: from `next`: too many records are bad, reading one failed in another way (names it), or a
            worker was killed.
    """
    check_loader(workers=workers, threads=threads, repeats=repeats, max_bad_ratio=max_bad_ratio)
    if start_step < 0:
        raise UserError(f"The first step is {start_step}; expected 0 or more.")
    order = TrainingOrder(len(source), seed, stage, repeats)
    reader = _reader(source, order, batch_size, process_index, process_count)
    tally = Tally(
        source,
        Ledger() if ledger is None else ledger,
        part="train",
        stage=stage,
        max_bad_ratio=max_bad_ratio,
        examples=start_step * batch_size,
        examples_per_batch=batch_size,
        records_per_example=1 / (repeats * process_count),
    )
    return _batches(reader, tally, start_step, None, workers, threads)


def check_loader(*, workers: int = 0, threads: int | None = None, repeats: int = 1, max_bad_ratio: float) -> None:
    """Refuses numbers that `train_batches` cannot use, before any work is done.

    Raises:
        UserError: naming the field.
    """
    counts = [("workers", workers, 0), ("repeats", repeats, 1)] + (
        [] if threads is None else [("threads", threads, 1)]
    )
    for field, value, least in counts:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"config.data.{field} is {value!r}; expected a whole number, {least} or more.")
    if isinstance(max_bad_ratio, bool) or not 0 <= max_bad_ratio <= 1:
        raise UserError(f"config.data.max_bad_ratio is {max_bad_ratio!r}; expected a share, from 0 (none) to 1.")


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    records: Sequence[int] | None = None,
    workers: int = 0,
    threads: int | None = None,
    max_bad_ratio: float = MAX_BAD_RATIO,
    ledger: Ledger | None = None,
    part: str = "test",
    stage: int = 0,
) -> HostBatches:
    """Every record once, in order; the same number of batches in every process.

    The last batch is filled up with rows of zeros whose `valid` is false (their `size` is the whole canvas, so that
    nothing computed from it is infinite); the row of a bad record is such a one too, and `bad` says why. The other
    arguments and fields are those of `train_batches`.

    Args:
        limit: at most so many records, evenly spaced over the source.
        records: these alone, by number, in this order.
        part: what the source is called in the ledger.

    Raises:
        UserError: the batch does not divide over the processes.
        TrainingError: as `train_batches`.
    """
    check_loader(workers=workers, threads=threads, max_bad_ratio=max_bad_ratio)
    order = EvaluationOrder(len(source), limit, None if records is None else tuple(records))
    reader = _reader(source, order, batch_size, process_index, process_count)
    ledger = Ledger() if ledger is None else ledger
    tally = Tally(source, ledger, part=part, stage=stage, max_bad_ratio=max_bad_ratio)
    return _batches(reader, tally, 0, -(-len(order) // batch_size), workers, threads)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Gives part number `number`, counted over the whole run, of this process's batches."""

    source: Source
    order: TrainingOrder | EvaluationOrder
    batch_size: int
    first_row: int
    num_rows: int
    num_parts: int

    def __call__(self, number: int) -> HostBatch:
        with Stopwatch() as watch:
            rows = self._read(int(number))
        return rows | {"seconds": np.array([list(watch.seconds.values())])}

    def _read(self, number: int) -> HostBatch:
        step, part = divmod(number, self.num_parts)
        start = step * self.batch_size + self.first_row
        first, last = (p * self.num_rows // self.num_parts for p in (part, part + 1))
        wanted, epoch, valid = (
            values[first:last].copy() for values in _order_of_batch(self.order, start, start + self.num_rows)
        )
        rows, bad = self._examples(wanted, epoch, valid)
        if not isinstance(self.order, TrainingOrder):
            valid = valid & (bad == 0)
        if not valid.all():
            rows = {
                name: np.where(_like(valid, values), values, 0).astype(values.dtype) for name, values in rows.items()
            }
            rows["size"][~valid] = self.source.image_shape[:2]
        if "texts" in rows:
            chosen = self.order.choose(rows["index"], epoch, np.maximum(rows["num_texts"], 1))
            rows["text"] = rows["texts"][np.arange(len(wanted)), chosen]
        return rows | {"epoch": epoch, "valid": valid, "bad": bad, "wanted": wanted.astype(np.int32)}

    def _examples(self, wanted: np.ndarray, epoch: np.ndarray, valid: np.ndarray) -> tuple[HostBatch, np.ndarray]:
        """The records of a part, or those in their place, and why (int8): 0, or 1 + the place in `REASONS`."""
        bad = np.zeros(len(wanted), np.int8)
        if (read_many := getattr(self.source, "__getitems__", None)) is not None:
            try:
                return read_many(wanted), bad
            except BadSample:  # which of them it is shows when they are read one by one
                pass
        examples: list[HostBatch | None] = []
        for row, (index, e, is_record) in enumerate(zip(wanted.tolist(), epoch.tolist(), valid, strict=True)):
            try:
                examples.append(read_record(self.source, index, e) if is_record else None)
            except BadSample as error:
                bad[row] = 1 + REASONS.index(error.reason)
                examples.append(self._substitute(index, e, error))
        return _stack(examples, self.source), bad

    def _substitute(self, index: int, epoch: int, error: BadSample) -> HostBatch | None:
        if not isinstance(self.order, TrainingOrder):
            return None
        others = self.order.substitutes(index).tolist()
        for other in others:
            with contextlib.suppress(BadSample):
                return read_record(self.source, other, epoch)
        raise TrainingError(f"{error}\nNor could any of {len(others)} others be used that were tried in its place.")


class _TakingTurns:
    """A reader whose threads wait for each other while its records take next to no time.

    Reading a small file is a handful of calls that each let go of Python's lock and want it back; two threads that do
    so spend most of their time on handing it over. Of JPEGs of 64 x 64 pixels two threads read 8,800 a second, where
    one reads 12,500; of 128 x 128 it is 8,700 and 7,100 (2 cores; scripts/bench/README.md).
    """

    def __init__(self, reader: _Reader):
        """Takes what is to be called."""
        self._reader = reader
        self._turn = threading.Lock()
        self._slow_seconds: float | None = None  # of the last parts, those in a row; None before the first

    def __call__(self, number: int) -> HostBatch:
        if not self._is_slow():
            with self._turn:
                if not self._is_slow():  # nor now that it is our turn
                    part = self._reader(number)
                    self._judge(float(part["seconds"].sum()), len(part["valid"]))
                    return part
        return self._reader(number)

    def _is_slow(self) -> bool:
        return self._slow_seconds is not None and self._slow_seconds > _PATIENCE_SECONDS

    def _judge(self, seconds: float, num_records: int) -> None:
        if self._slow_seconds is None or seconds < _QUICK_SECONDS * num_records:
            self._slow_seconds = 0.0  # the first part may have opened files, and tells nothing
        else:
            self._slow_seconds += seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return _TakingTurns, (self._reader,)


@functools.lru_cache(_KNOWN_ORDERS)
def _order_of_batch(
    order: TrainingOrder | EvaluationOrder, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`order.rows`, once for all parts of a batch: it takes as long for 16 rows as for 256. Not to be written to."""
    return order.rows(start, stop)


def _like(valid: np.ndarray, values: np.ndarray) -> np.ndarray:
    return valid.reshape(-1, *(1,) * (values.ndim - 1))


def read_record(source: Source, index: int, epoch: int = 0) -> HostBatch:
    """One record, as it is drawn in an epoch.

    Raises:
        BadSample: it cannot be used.
        TrainingError: reading it failed in another way; names it.
    """
    try:
        drawn = getattr(source, "drawn", None)
        return source[index] if drawn is None else drawn(index, epoch)
    except TrainingError:
        raise
    except Exception as error:  # a source may use any library, and the message must name the record
        raise TrainingError(f"Cannot read {source.name(index)}: {type(error).__name__}: {error}") from error


def blank_rows(source: Source, number: int) -> HostBatch:
    """Rows of zeros of every field that an example of the source has, the batch axis first."""
    fields: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": (source.image_shape, getattr(source, "image_dtype", np.uint8)),
        "size": ((2,), np.int32),
        "label": ((), np.int32),
        "index": ((), np.int32),
    }
    if (text_shape := getattr(source, "text_shape", None)) is not None:
        fields |= {"texts": (text_shape, np.int32), "num_texts": ((), np.int32)}
    fields |= getattr(source, "fields", {})
    return {name: np.zeros((number, *shape), dtype) for name, (shape, dtype) in fields.items()}


def record_bytes(source: Source) -> int:
    """What one record of the source takes in memory, without reading any."""
    return sum(values.nbytes for values in blank_rows(source, 1).values())


def _stack(examples: Sequence[HostBatch | None], source: Source) -> HostBatch:
    """The batch axis first; zeros for None."""
    out = blank_rows(source, len(examples))
    for row, example in enumerate(examples):
        if example is not None:
            for name, value in example.items():
                out[name][row] = value
    return out


def _reader(
    source: Source, order: TrainingOrder | EvaluationOrder, batch_size: int, process_index: int, process_count: int
) -> _Reader:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"config.data.batch_size is {batch_size}, which does not divide over {process_count} processes. "
            f"Try {max(1, batch_size // process_count) * process_count}."
        )
    num_rows = batch_size // process_count
    # A source that reads many records at once is fastest with whole batches.
    num_parts = 1 if hasattr(source, "__getitems__") else -(-num_rows // _part_rows(source))
    return _Reader(source, order, batch_size, process_index * num_rows, num_rows, num_parts)


def _part_rows(source: Source) -> int:
    """Rows of a part: the more, the smaller its records, as handing on a part costs as much whatever is in it.

    Of files of 32 x 32 pixels that is 2 % of reading them in parts of 64 rows, and was 11 % in parts of 16.
    """
    least, most = _PART_ROWS
    return min(most, max(least, _PART_BYTES // record_bytes(source)))


def _batches(
    reader: _Reader, tally: Tally, start: int, stop: int | None, workers: int, threads: int | None
) -> HostBatches:
    """Batches number `start` to `stop`, or without end."""
    import grain

    parts = reader.num_parts
    threads = min(_num_cores(), _MAX_THREADS) if threads is None else threads
    if parts == 1:
        threads = min(threads, 2)  # each makes a whole batch: one in the making, one ready
    if workers:
        threads = max(1, threads // workers)
    buffer = max(threads, -(-2 * parts // max(1, workers)))  # two batches in all, and no thread idle
    end = sys.maxsize if stop is None else stop * parts
    dataset = (
        grain.MapDataset.range(start * parts, end)
        .map(_TakingTurns(reader))
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer))
    )
    if workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, in notebooks and scripts too
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_begin_worker)
    # Joining also copies what workers put into shared memory, so that no batch ever points there.
    dataset = dataset.batch(parts, batch_fn=_join)
    return HostBatches(iter(dataset), tally)


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _join(parts: Sequence[HostBatch]) -> HostBatch:
    if len(parts) == 1 and type(parts[0]["image"]) is np.ndarray:
        return parts[0]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


@contextlib.contextmanager
def _signals_held() -> Generator[None, None, None]:
    """Worker processes started inside are born with these signals held back, until they have handlers of their own.

    Not in the main thread, where Ctrl-C must stay alive while workers start.
    """
    if threading.current_thread() is threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(index: int, count: int) -> None:
    """Runs first in each worker process."""
    del index, count
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group; the run decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    # Grain's workers outlive a parent that was killed: this one ends with it.
    threading.Thread(target=_end_with_parent, name="vfm-parent-watch", daemon=True).start()


def _end_later(*signal_and_frame: object) -> None:
    """Leaves the run time to save; ends even so, for a parent that was never told to close and waits at its exit."""
    del signal_and_frame
    timer = threading.Timer(_SIGTERM_GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
