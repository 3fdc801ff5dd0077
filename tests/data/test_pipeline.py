"""Batches in exact order."""

import collections
import concurrent.futures
import glob
import itertools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import time

import cloudpickle
import numpy as np
import pytest

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.data import pipeline
from vfm_jax.data.bad import REASONS, BadSample
from vfm_jax.data.device import prefetch
from vfm_jax.data.ledger import Ledger
from vfm_jax.data.pipeline import eval_batches, train_batches
from vfm_jax.data.sources.arrays import arrays
from vfm_jax.data.sources.folder import folder

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not find this file


class CountingSource:
    """Images that hold their own index; read one by one, as a folder's are."""

    class_names = ("even", "odd")
    image_shape = (2, 3, 1)

    def __init__(self, length, broken=None):
        self.length, self.broken = length, broken

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError("the disk is gone")
        image, size = np.full(self.image_shape, index, np.uint8), np.array([2, 3], np.int32)
        return {"image": image, "size": size, "label": np.int32(index % 2), "index": np.int32(index)}

    def name(self, index):
        return f"image_{index}.png"


class DamagedSource(CountingSource):
    """Some of its records are bad: index -> reason."""

    def __init__(self, length, bad):
        super().__init__(length)
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise BadSample(self.name(index), self.bad[index], f"record {index} is damaged")
        return super().__getitem__(index)


class DamagedManyAtOnceSource(DamagedSource):
    """The same, read many at a time."""

    def __getitems__(self, indices):
        return _together(self, indices)


class LabelMapSource(CountingSource):
    """Examples with a field of their own."""

    def __init__(self, length):
        super().__init__(length)
        self.fields = {"label_map": ((2, 3), np.uint8)}

    def __getitem__(self, index):
        return super().__getitem__(index) | {"label_map": np.full((2, 3), index, np.uint8)}


class ManyAtOnceSource(CountingSource):
    """The same, read many at a time."""

    def __getitems__(self, indices):
        return _together(self, indices)


def _together(source, indices):
    examples = [source[int(i)] for i in indices]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _joined(shares):
    """The batches of several processes, put together."""
    return [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]


def _take(batches, number):
    with batches:
        return [next(batches) for _ in range(number)]


def _assert_same(left, right):
    assert len(left) == len(right)
    for one, two in zip(left, right, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
            assert one[name].dtype == two[name].dtype


SHAPES = dict.fromkeys(("label", "index", "epoch", "valid", "bad", "wanted"), (5,))
SHAPES |= {
    "image": (5, 2, 3, 1),
    "size": (5, 2),
    "label": (5,),
    "index": (5,),
    "epoch": (5,),
    "valid": (5,),
    "bad": (5,),
    "wanted": (5,),
}
TYPES = dict.fromkeys(("size", "label", "index", "epoch", "wanted"), "int32")
TYPES |= {"image": "uint8", "valid": "bool", "bad": "int8"}


@pytest.mark.parametrize("kind", [CountingSource, ManyAtOnceSource])
def test_a_batch_holds_the_fields_of_the_contract(kind):
    source = kind(11)
    (batch,) = _take(train_batches(source, batch_size=5, seed=0), 1)
    assert {name: values.shape for name, values in batch.items()} == SHAPES
    assert {name: str(values.dtype) for name, values in batch.items()} == TYPES
    assert batch["valid"].all()
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    np.testing.assert_array_equal(batch["label"], batch["index"] % 2)
    (batch,) = _take(eval_batches(source, batch_size=5), 1)
    assert {name: str(values.dtype) for name, values in batch.items()} == TYPES


@pytest.mark.parametrize("kind", [CountingSource, ManyAtOnceSource])
@pytest.mark.parametrize("batch_size", [3, 11, 40])
def test_every_record_comes_exactly_once_an_epoch(kind, batch_size):
    batches = _take(train_batches(kind(11), batch_size=batch_size, seed=1), 40 // batch_size + 10)
    index, epoch = (np.concatenate([batch[name] for batch in batches]) for name in ("index", "epoch"))
    for one in range(epoch.max()):  # the last may be cut
        np.testing.assert_array_equal(np.sort(index[epoch == one]), np.arange(11))
    assert epoch.max() >= 2
    assert (np.diff(epoch) >= 0).all()
    assert tuple(index[:11]) != tuple(index[11:22])


def test_the_batches_follow_from_seed_and_stage_alone():
    source = CountingSource(50)
    first = _take(train_batches(source, batch_size=20, seed=3, stage=1), 4)
    _assert_same(first, _take(train_batches(source, batch_size=20, seed=3, stage=1, threads=5), 4))
    _assert_same(first, _take(train_batches(ManyAtOnceSource(50), batch_size=20, seed=3, stage=1), 4))
    for other in ({"seed": 4, "stage": 1}, {"seed": 3, "stage": 2}):
        batches = _take(train_batches(source, batch_size=20, **other), 1)
        assert (batches[0]["index"] != first[0]["index"]).any()


@pytest.mark.parametrize("kind", [CountingSource, ManyAtOnceSource])
def test_a_resumed_run_goes_on_with_the_same_batches(kind):
    whole = _take(train_batches(kind(13), batch_size=140, seed=0), 9)
    _assert_same(whole[6:], _take(train_batches(kind(13), batch_size=140, seed=0, start_step=6), 3))


@pytest.mark.parametrize("kind", [CountingSource, ManyAtOnceSource])
@pytest.mark.parametrize("count", [2, 3])
def test_the_rows_of_all_processes_are_the_batch_of_one(kind, count):
    """180 rows are three parts for one process and other parts for several."""
    whole = _take(train_batches(kind(29), batch_size=180, seed=0), 4)
    shares = [
        _take(train_batches(kind(29), batch_size=180, seed=0, process_index=p, process_count=count), 4)
        for p in range(count)
    ]
    _assert_same(whole, _joined(shares))


@pytest.mark.parametrize("kind", [CountingSource, ManyAtOnceSource])
@pytest.mark.parametrize(("length", "count"), [(7, 1), (8, 2), (3, 2), (25, 1)])
def test_evaluation_gives_every_record_once_and_pads(kind, length, count):
    shares = [
        list(eval_batches(kind(length), batch_size=4, process_index=p, process_count=count)) for p in range(count)
    ]
    assert {len(share) for share in shares} == {-(-length // 4)}
    batches = _joined(shares)
    index, valid = (np.concatenate([batch[name] for batch in batches]) for name in ("index", "valid"))
    np.testing.assert_array_equal(index[valid], np.arange(length))
    last, good = batches[-1], batches[-1]["valid"]
    for name in ("image", "label", "index", "epoch", "wanted", "bad"):
        assert not last[name][~good].any()
    np.testing.assert_array_equal(last["size"], [[2, 3]] * 4)


def test_a_limited_evaluation_reads_records_of_every_class():
    labels = np.repeat(np.arange(5), 8)
    source = arrays(images=np.zeros((40, 2, 3), np.uint8), labels=labels)
    (batch,) = eval_batches(source, batch_size=10, limit=10)
    np.testing.assert_array_equal(batch["label"], np.repeat(np.arange(5), 2))


@pytest.mark.parametrize("kind", [train_batches, eval_batches])
def test_a_batch_that_does_not_divide_over_processes_is_refused(kind):
    options = {"seed": 0} if kind is train_batches else {}
    with pytest.raises(UserError, match=r"batch_size is 10, which does not divide over 4 processes. Try 8"):
        kind(CountingSource(9), batch_size=10, process_count=4, **options)
    with pytest.raises(UserError, match="Try 4"):
        kind(CountingSource(9), batch_size=2, process_count=4, **options)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("workers", -1), ("workers", None), ("threads", 0), ("threads", 1.5), ("repeats", 0), ("repeats", True)],
)
def test_wrong_numbers_are_refused(field, wrong):
    with pytest.raises(UserError, match=rf"config\.data\.{field} is {wrong}; expected a whole number, . or more"):
        train_batches(CountingSource(9), batch_size=3, seed=0, **{field: wrong})
    with pytest.raises(UserError, match="first step is -1"):
        train_batches(CountingSource(9), batch_size=3, seed=0, start_step=-1)


def test_an_unreadable_record_is_named():
    batches = train_batches(CountingSource(9, broken=4), batch_size=9, seed=0)
    with pytest.raises(TrainingError, match=r"Cannot read image_4\.png: OSError: the disk is gone"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_a_damaged_file_stops_the_run_with_its_name(write_image, tmp_path):
    for i in range(3):
        write_image(tmp_path / f"{i}.jpg", 40, 50)
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:650])
    with (
        train_batches(folder(str(tmp_path), canvas_size=8), batch_size=3, seed=0) as batches,
        pytest.raises(TrainingError, match=r"1 of the 3 records .*: 1 truncated\.\n.*1\.jpg: .*truncated"),
    ):
        next(batches)


BAD = {3: "truncated", 8: "empty", 9: "truncated", 20: "corrupt"}
DAMAGED = [DamagedSource, DamagedManyAtOnceSource]
ANY = {"max_bad_ratio": 1.0}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_bad_record_is_replaced_by_the_same_other_one_every_time(kind):
    batches = _take(train_batches(kind(23, BAD), batch_size=23, seed=0, **ANY), 3)
    index, wanted, bad = (np.concatenate([batch[name] for batch in batches]) for name in ("index", "wanted", "bad"))
    np.testing.assert_array_equal(np.sort(wanted[:23]), np.arange(23))
    np.testing.assert_array_equal(wanted[bad == 0], index[bad == 0])
    assert not set(index) & set(BAD)
    for one, reason in BAD.items():
        assert set(bad[wanted == one]) == {1 + REASONS.index(reason)}
        assert len(set(index[wanted == one])) == 1  # in each of three epochs
    assert len(set(index[bad > 0])) > 1
    for batch in batches:
        assert batch["valid"].all()
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 2)


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("repeats", [1, 3])
def test_batches_with_bad_records_depend_on_no_setting_of_the_machine(kind, count, threads, repeats):
    """Nor on where the run was resumed. 180 rows are other parts for other processes, and 23 divides by nothing."""
    options = {"batch_size": 180, "seed": 5, "stage": 2, "repeats": repeats, **ANY}
    whole = _take(train_batches(DamagedSource(23, BAD), **options), 5)
    for start in (0, 3):
        shares = [
            _take(
                train_batches(
                    kind(23, BAD), threads=threads, process_index=p, process_count=count, start_step=start, **options
                ),
                5 - start,
            )
            for p in range(count)
        ]
        _assert_same(whole[start:], _joined(shares))


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_bad_record_is_not_valid_in_evaluation_and_written_down_once(kind):
    ledger = Ledger()
    for _ in range(2):
        batches = list(eval_batches(kind(23, BAD), batch_size=4, ledger=ledger, part="eval test", **ANY))
        index, valid, bad = (np.concatenate([batch[name] for batch in batches]) for name in ("index", "valid", "bad"))
        np.testing.assert_array_equal(index[valid], np.setdiff1d(np.arange(23), list(BAD)))
        np.testing.assert_array_equal(np.flatnonzero(bad), list(BAD))
        assert not valid[list(BAD)].any()
        for batch in batches:
            assert not batch["image"][~batch["valid"]].any()
            np.testing.assert_array_equal(batch["size"], [[2, 3]] * 4)
    assert [(row["index"], row["reason"], row["part"]) for row in ledger.rows] == [
        (index, reason, "eval test") for index, reason in BAD.items()
    ]
    assert ledger.rows[0]["detail"] == "record 3 is damaged"
    assert ledger.rows[0]["name"] == "image_3.png"


def test_a_source_without_a_good_record_stops_loudly():
    source = DamagedSource(5, dict.fromkeys(range(5), "empty"))
    with (
        train_batches(source, batch_size=2, seed=0, **ANY) as batches,
        pytest.raises(TrainingError, match=r"image_\d\.png: .* \(empty\)\nNor could any of 4 others be used"),
    ):
        next(batches)


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeats_stand_in_a_row_with_another_draw_each(repeats):
    batches = _take(train_batches(CountingSource(11), batch_size=6, seed=1, repeats=repeats), 12)
    index, draw = (np.concatenate([batch[name] for batch in batches]) for name in ("index", "epoch"))
    np.testing.assert_array_equal(index[: 6 * repeats], np.repeat(index[: 6 * repeats : repeats], repeats))
    np.testing.assert_array_equal(draw[: 11 * repeats], np.tile(np.arange(repeats), 11))
    assert len(set(zip(index.tolist(), draw.tolist(), strict=True))) == len(index)  # no two are augmented alike
    plain = np.concatenate([b["index"] for b in _take(train_batches(CountingSource(11), batch_size=6, seed=1), 6)])
    np.testing.assert_array_equal(index[::repeats], plain[: len(index[::repeats])])


def test_further_fields_of_a_source_pass_through():
    (batch,) = _take(train_batches(LabelMapSource(9), batch_size=4, seed=0), 1)
    np.testing.assert_array_equal(batch["label_map"][:, 1, 2], batch["index"])
    last = list(eval_batches(LabelMapSource(9), batch_size=4))[-1]
    assert last["label_map"].dtype == np.uint8
    assert not last["label_map"][1:].any()


class TracedSource(CountingSource):
    """Counts the records that were read."""

    def __init__(self, length):
        super().__init__(length)
        self.num_read, self._lock = 0, threading.Lock()

    def __getitem__(self, index):
        with self._lock:
            self.num_read += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [16, 96])
def test_what_is_held_ready_is_bounded(threads, batch_size):
    """Grain holds two batches (at least a part of 64 rows a thread); one is put together, two are prefetched."""
    source = TracedSource(250)
    bound = max(2 * batch_size, min(64, batch_size) * threads) + batch_size + 2 * batch_size
    with prefetch(
        train_batches(source, batch_size=batch_size, seed=0, threads=threads), lambda batch: batch
    ) as batches:
        for taken in range(1, 8):
            next(batches)
            before = -1
            while before != source.num_read:  # until the threads have nothing left to do
                before = source.num_read
                time.sleep(0.05)
            assert source.num_read - taken * batch_size <= bound


def test_no_thread_is_left_after_closing():
    def alive():
        return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]

    with train_batches(CountingSource(9), batch_size=40, seed=0, threads=3) as batches:
        next(batches)
        assert alive()
    for _ in range(200):
        if not alive():
            break
        time.sleep(0.01)
    assert not alive()
    assert list(batches) == []


def _shared_memory():
    return set(glob.glob("/dev/shm/*"))


def test_worker_processes_give_the_same_batches_and_leave_nothing():
    """Also resumed, and by another number of workers: the position is the step alone. Bad records are told of too."""
    source, ledger = DamagedSource(23, BAD), Ledger()
    whole = _take(train_batches(source, batch_size=180, seed=0, **ANY), 5)
    before = _shared_memory()
    with train_batches(source, batch_size=180, seed=0, workers=2, start_step=2, ledger=ledger, **ANY) as batches:
        _assert_same(whole[2:4], [next(batches), next(batches)])
        kept = next(batches)
        assert batches.seconds["other"] > 0  # spent in the workers, and sent with the batches
    del batches
    assert {row["index"]: row["reason"] for row in ledger.rows} == BAD
    _assert_same([whole[4]], [kept])
    assert not multiprocessing.active_children()
    for _ in range(300):  # grain removes shared memory in a thread
        if _shared_memory() <= before:
            break
        time.sleep(0.01)
    assert _shared_memory() <= before


def test_a_record_unreadable_in_a_worker_is_named_too():
    with (
        eval_batches(CountingSource(9, broken=4), batch_size=9, workers=1) as batches,
        pytest.raises(TrainingError, match=r"Cannot read image_4\.png: OSError: the disk is gone"),
    ):
        next(batches)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_told_and_does_not_hang():
    with train_batches(CountingSource(9), batch_size=4, seed=0, workers=1) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(TrainingError, match="exit code -9"):
            collections.deque(itertools.islice(batches, 100), maxlen=0)  # what was ready may still come


def test_signals_to_the_process_group_do_not_end_the_workers():
    """From their first moment on: Ctrl-C while they start is the common case."""
    with prefetch(train_batches(CountingSource(9), batch_size=4, seed=0, workers=1), lambda batch: batch) as batches:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        for _ in range(2):
            for worker in workers:
                os.kill(worker.pid, signal.SIGINT)
                os.kill(worker.pid, signal.SIGTERM)
            assert len([next(batches) for _ in range(20)]) == 20
        assert multiprocessing.active_children() == workers
    assert not multiprocessing.active_children()


PARENT = """
import multiprocessing, os, signal, sys
import numpy as np
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.sources.arrays import arrays

if __name__ == "__main__":
    batches = train_batches(arrays(images=np.zeros((9, 2, 3), np.uint8)), batch_size=4, seed=0, workers=2)
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks for the worker in /proc")
def test_workers_end_when_their_parent_is_killed():
    """A parent whose code is in no file, as a notebook's is not."""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PARENT],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    workers = done.stdout.split()
    assert len(workers) == 2

    def running(worker):
        try:
            state = pathlib.Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return False
        return state != "Z"

    for _ in range(500):  # milliseconds on a free machine; they are told, and need a processor to end
        if not any(map(running, workers)):
            break
        time.sleep(0.02)
    assert not any(map(running, workers))


class _FakeReader:
    """Parts of a thousand records that claim to have taken so many seconds; notes how many are read at a time."""

    def __init__(self, seconds, together=0):
        self.seconds, self.together = seconds, together
        self.active, self.most = 0, 0

    def __call__(self, number):
        self.active += 1
        self.most = max(self.most, self.active)
        if self.together and number >= 3:
            BARRIER.wait(timeout=60)  # which ends when so many are here at once
        time.sleep(0.002)
        self.active -= 1
        return {"seconds": np.array([[0.0, 1000 * self.seconds]]), "valid": np.ones(1000, bool)}


BARRIER = threading.Barrier(3)


@pytest.mark.parametrize(("seconds", "most"), [(0.5 * pipeline._QUICK_SECONDS, 1), (2 * pipeline._QUICK_SECONDS, 3)])
def test_threads_read_one_after_another_while_records_take_next_to_no_time(seconds, most):
    reader = _FakeReader(seconds, together=most > 1)
    turns = pickle.loads(pickle.dumps(pipeline._TakingTurns(reader)))
    for number in range(3):  # the first tells nothing, the others do
        turns(number)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(turns, range(3, 15)))
    assert all(len(part["valid"]) == 1000 for part in parts)
    assert turns._reader.most == most
