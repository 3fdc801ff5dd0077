"""Host batches in exact order: grain reads ahead in threads or worker processes, the order is ours.

Batch k is a pure function of the arguments and k. The position in the data is therefore the step alone: it does not
depend on how many threads, workers or processes read, and nothing else needs saving.

A batch is read in parts of a few rows (`_PART_ROWS`), so that all threads and workers share the next batch instead
of each making a batch of its own: the first batch comes sooner, and less is held in memory.
"""

import contextlib
import dataclasses
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
from vfm_jax.data.order import EvaluationOrder, TrainingOrder
from vfm_jax.data.sources import Source

_PART_ROWS = 16
_MAX_THREADS = 16
_SIGTERM_GRACE_SECONDS = 60
_ENDING = {signal.SIGINT, signal.SIGTERM}

HostBatch = dict[str, np.ndarray]


class HostBatches(Iterator[HostBatch]):
    """Batches of this process's rows. Close it, or use it in a `with`, to end its threads and workers at once."""

    def __init__(self, batches: Any):
        self._batches: Iterator[HostBatch] = batches
        self._finalizer = weakref.finalize(self, batches.close)
        self._started = False

    def __next__(self) -> HostBatch:
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
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> HostBatches:
    """Shuffled batches without end: every record exactly once an epoch, each epoch in another order.

    Fields: `image`, `size`, `label`, `index` as the source has them, with the batch axis first; `epoch` int32 (b,);
    `valid` bool (b,), always true; where it has texts, `text` int32 (b, l), the one drawn, beside all of them. A
    batch may span two epochs. The rows of all processes, put one after the other, are the batch that one process
    alone would have read.

    Args:
        source: where the records come from.
        batch_size: rows of a batch over all processes.
        seed: of the order.
        stage: number of the stage; each has its own order.
        workers: processes that read, beside this one; 0 reads in threads of this process.
        threads: reading at a time; as many as there are cores, up to 16, by default.
        start_step: number of the first batch: where a resumed run goes on.
        process_index: number of this process.
        process_count: of how many.

    Raises:
        UserError: the batch does not divide over the processes.
        TrainingError: from `next`: a record cannot be read (names it), or a worker was killed.
    """
    order = TrainingOrder(len(source), seed, stage)
    reader = _reader(source, order, batch_size, process_index, process_count)
    return _batches(reader, start_step, None, workers, threads)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
    workers: int = 0,
    threads: int | None = None,
) -> HostBatches:
    """Every record once, in order; the same number of batches in every process.

    The last batch is filled up with rows of zeros whose `valid` is false (their `size` is the whole canvas, so that
    nothing computed from it is infinite). The other arguments and fields are those of `train_batches`.

    Args:
        limit: at most so many records, evenly spaced over the source.

    Raises:
        UserError: the batch does not divide over the processes.
        TrainingError: from `next`: a record cannot be read (names it), or a worker was killed.
    """
    order = EvaluationOrder(len(source), limit)
    reader = _reader(source, order, batch_size, process_index, process_count)
    return _batches(reader, 0, -(-len(order) // batch_size), workers, threads)


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
        step, part = divmod(int(number), self.num_parts)
        start = step * self.batch_size + self.first_row
        first, last = (start + p * self.num_rows // self.num_parts for p in (part, part + 1))
        index, epoch, valid = self.order.rows(first, last)
        read_many = getattr(self.source, "__getitems__", None)
        if read_many is not None:
            rows = read_many(index)
        else:
            places = zip(index, epoch, valid, strict=True)
            examples = [_read(self.source, i, e) if good else None for i, e, good in places]
            rows = _stack(examples, self.source)
        if not valid.all():
            rows = {
                name: np.where(_like(valid, values), values, 0).astype(values.dtype) for name, values in rows.items()
            }
            rows["size"][~valid] = self.source.image_shape[:2]
        if "texts" in rows:
            chosen = self.order.choose(index, epoch, np.maximum(rows["num_texts"], 1))
            rows["text"] = rows["texts"][np.arange(len(index)), chosen]
        return rows | {"epoch": epoch, "valid": valid}


def _like(valid: np.ndarray, values: np.ndarray) -> np.ndarray:
    return valid.reshape(-1, *(1,) * (values.ndim - 1))


def _read(source: Source, index: int, epoch: int) -> HostBatch:
    try:
        drawn = getattr(source, "drawn", None)
        return source[int(index)] if drawn is None else drawn(int(index), int(epoch))
    except TrainingError:
        raise
    except Exception as error:  # a source may use any library, and the message must name the record
        raise TrainingError(f"Cannot read {source.name(int(index))}: {type(error).__name__}: {error}") from error


def _stack(examples: Sequence[HostBatch | None], source: Source) -> HostBatch:
    """The batch axis first; zeros for None."""
    out = {
        "image": np.zeros((len(examples), *source.image_shape), np.uint8),
        "size": np.zeros((len(examples), 2), np.int32),
        "label": np.zeros(len(examples), np.int32),
        "index": np.zeros(len(examples), np.int32),
    }
    if (text_shape := getattr(source, "text_shape", None)) is not None:
        out["texts"] = np.zeros((len(examples), *text_shape), np.int32)
        out["num_texts"] = np.zeros(len(examples), np.int32)
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
    num_parts = 1 if hasattr(source, "__getitems__") else -(-num_rows // _PART_ROWS)
    return _Reader(source, order, batch_size, process_index * num_rows, num_rows, num_parts)


def _batches(reader: _Reader, start: int, stop: int | None, workers: int, threads: int | None) -> HostBatches:
    """Batches number `start` to `stop`, or without end."""
    if workers < 0 or (threads is not None and threads < 1) or start < 0:
        raise UserError(
            f"config.data: workers is {workers} (0 or more), threads is {threads} (1 or more), and the first step is "
            f"{start} (0 or more)."
        )
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
        .map(reader)
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
    return HostBatches(iter(dataset))


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
