"""The account of records that cannot be used."""

import json

import numpy as np
import pytest

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.data.bad import REASONS, BadSample
from vfm_jax.data.ledger import Ledger, Tally, bad_samples, count_reasons
from vfm_jax.data.pipeline import train_batches


class Source:
    """Records of which some are bad, index -> reason; counts how often each was read."""

    class_names = None
    image_shape = (1, 1, 1)

    def __init__(self, length, bad=()):
        self.length, self.bad = length, dict(bad)
        self.reads = np.zeros(length, int)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.reads[index] += 1
        if index in self.bad:
            raise BadSample(self.name(index), self.bad[index], f"found nothing of use in {index}")
        return {"image": 0, "size": 1, "label": 0, "index": index}

    def name(self, index):
        return f"{index}.png"


def _batch(wanted, source):
    bad = [1 + REASONS.index(source.bad[i]) if i in source.bad else 0 for i in wanted]
    return {"wanted": np.array(wanted, np.int32), "bad": np.array(bad, np.int8)}


def _tally(source, ledger=None, **options):
    return Tally(source, ledger or Ledger(), **{"part": "train", "examples": 0, "examples_per_batch": 4, **options})


BAD = {1: "empty", 5: "truncated", 6: "truncated"}


def test_each_record_is_a_line_once_however_often_it_is_met(tmp_path):
    source, file = Source(1000, BAD), tmp_path / "bad_samples.jsonl"
    said = []
    tally = _tally(source, Ledger(file, said.append))
    assert not file.exists()
    for wanted in ([0, 1, 2, 3], [4, 5, 6, 7], [1, 6, 5, 0]):
        tally.take(_batch(wanted, source))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == [
        {"stage": 0, "part": "train", "index": i, "name": f"{i}.png", "reason": BAD[i], "example": example}
        | {"detail": f"found nothing of use in {i}"}
        for i, example in ((1, 0), (5, 4), (6, 4))
    ]
    assert source.reads.sum() == 3  # each once more, for the detail
    assert said[0] == "Left out: 1.png: found nothing of use in 1 (empty)."
    assert said[2].endswith(f"(truncated). Others are listed in {file}.")


def test_nothing_is_written_twice_after_a_crash_that_cut_a_line(tmp_path):
    source, file = Source(1000, BAD), tmp_path / "bad_samples.jsonl"
    _tally(source, Ledger(file)).take(_batch([1, 5, 6, 0], source))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    for _ in range(2):
        _tally(source, Ledger(file)).take(_batch([1, 5, 6, 0], source))
        assert file.read_bytes() == whole


def test_a_record_that_two_parts_share_counts_once(tmp_path):
    source = Source(1000, BAD)
    for name, part in (("bad_samples.jsonl", "train"), ("bad_samples.1.jsonl", "eval train")):
        _tally(source, Ledger(tmp_path / name), part=part).take(_batch([1, 5, 6, 0], source))
    found = bad_samples(tmp_path)
    assert found["reasons"] == {"truncated": 2, "empty": 1}
    assert [row["name"] for row in found["records"]] == ["1.png", "5.png", "6.png"]
    assert bad_samples(tmp_path / "elsewhere") == {}


def test_reasons_are_counted_the_most_frequent_first():
    rows = [{"name": str(i), "reason": reason} for i, reason in enumerate(("empty", "corrupt", "corrupt"))]
    assert list(count_reasons(rows).items()) == [("corrupt", 2), ("empty", 1)]


def test_the_run_stops_above_the_ratio_with_counts_names_and_the_next_move(tmp_path):
    source = Source(200, BAD)
    tally = _tally(source, Ledger(tmp_path / "bad_samples.jsonl"), max_bad_ratio=0.01)
    tally.take(_batch([0, 1, 5, 2], source))  # 2 of 200 are not above it
    tally.take(_batch([1, 5, 3, 4], source))  # nor when met again
    with pytest.raises(TrainingError) as caught:
        tally.take(_batch([6, 7, 8, 9], source))
    message = str(caught.value)
    assert (
        "3 of the 200 records cannot be used, above config.data.max_bad_ratio=0.01: 2 truncated, 1 empty." in message
    )
    assert "1.png: found nothing of use in 1 (empty)" in message
    assert f"delete {tmp_path / 'bad_samples.jsonl'}" in message
    assert "raise config.data.max_bad_ratio" in message


def test_the_first_bad_record_stops_a_strict_run():
    source = Source(10**6, BAD)
    tally = _tally(source, max_bad_ratio=0)
    tally.take(_batch([0, 2, 3, 4], source))
    with pytest.raises(TrainingError, match="1 of the 1,000,000 records"):
        tally.take(_batch([5, 7, 8, 9], source))


def test_a_large_source_stops_long_before_its_end():
    """1,000 examples with 3 % bad: above 1 % + 5 x 0.31 %; with 2 % they may be chance."""
    source = Source(10**6, dict.fromkeys(range(0, 10**6, 2), "corrupt"))
    for bad, stops in ((20, False), (30, True)):
        tally = _tally(source, examples_per_batch=1000, max_bad_ratio=0.01)
        batch = _batch([2 * i if i < bad else 2 * i + 1 for i in range(1000)], source)
        if stops:
            with pytest.raises(TrainingError, match="30 of the 1,000 records read so far"):
                tally.take(batch)
        else:
            tally.take(batch)
    with pytest.raises(TrainingError, match="30 of the 1,200 records"):
        _tally(source, examples_per_batch=3600, records_per_example=1 / 3).take(batch)


def test_few_examples_are_not_judged_by_their_share():
    source = Source(10**6, dict.fromkeys(range(100), "corrupt"))
    _tally(source, examples_per_batch=999).take(_batch(list(range(100)), source))


def test_a_resumed_run_stops_where_the_other_would_have(tmp_path):
    """What was found beyond the point of resuming does not count until it comes again."""
    bad = dict.fromkeys((3, 20, 40, 60), "empty")

    def run(file, start, stop):
        source = Source(100, bad)
        options = {"batch_size": 10, "seed": 0, "start_step": start, "max_bad_ratio": 0.03, "ledger": Ledger(file)}
        step = start
        with train_batches(source, **options) as batches:
            try:
                for _ in range(start, stop):
                    next(batches)
                    step += 1
            except TrainingError:
                return step
        return None

    stopped = run(tmp_path / "whole", 0, 20)
    assert 3 < stopped < 10
    again = tmp_path / "resumed"
    run(again, 0, stopped)
    assert run(again, stopped - 3, 20) == stopped
    assert again.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("ratio", [-0.1, 1.5, True, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(UserError, match="max_bad_ratio is"):
        train_batches(Source(9), batch_size=3, seed=0, max_bad_ratio=ratio)


def test_a_record_that_is_fine_the_second_time_is_listed_as_it_was_met():
    source = Source(1000, BAD)
    batch = _batch([1], source)
    source.bad = {}
    ledger = Ledger()
    _tally(source, ledger).take(batch)
    assert ledger.rows[0]["reason"] == "empty"
    assert "second time" in ledger.rows[0]["detail"]
