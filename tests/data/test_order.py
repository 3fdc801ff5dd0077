"""The order of the records."""

import numpy as np
import pytest

from vfm_jax.data.order import EvaluationOrder, TrainingOrder, permuted

PINNED = [709, 637, 638, 887, 145, 293]  # this implementation, at the time it was written


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7, 16, 97, 1000, 4097])
def test_every_record_has_exactly_one_place(length):
    places = permuted(np.arange(length), length, (3, 0, 1))
    np.testing.assert_array_equal(np.sort(places), np.arange(length))


def test_the_order_is_pinned():
    """A run resumed with another version of anything must go on with the same records."""
    np.testing.assert_array_equal(permuted(np.arange(6), 1000, (0, 0, 0)), PINNED)
    np.testing.assert_array_equal(permuted(np.array([5, 0]), 1000, (0, 0, 0)), [PINNED[5], PINNED[0]])


def test_large_sources_are_shuffled_without_a_table():
    length = 10**12
    places = permuted(np.arange(1000), length, (0, 0, 0))
    assert len(np.unique(places)) == 1000
    assert 0.4 < places.mean() / length < 0.6


def test_each_place_is_equally_likely():
    """Over many keys the counts of (position, place) stay within 6 deviations of even."""
    length, draws = 5, 2000
    counts = np.zeros((length, length))
    for key in range(draws):
        counts[np.arange(length), permuted(np.arange(length), length, (key, 0, 0))] += 1
    assert np.abs(counts - draws / length).max() < 6 * np.sqrt(draws / length)


def test_neighbours_do_not_stay_together():
    places = permuted(np.arange(4000), 4000, (1, 0, 0)).astype(np.float64)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.06


@pytest.mark.parametrize("other", [{"seed": 1, "stage": 0}, {"seed": 0, "stage": 1}])
def test_seed_and_stage_change_the_order(other):
    one, _, _ = TrainingOrder(97, seed=0).rows(0, 97)
    two, _, _ = TrainingOrder(97, **other).rows(0, 97)
    assert (one != two).mean() > 0.9


def test_each_epoch_holds_every_record_once_in_another_order():
    index, epoch, valid = TrainingOrder(11, seed=5).rows(0, 33)
    assert valid.all()
    np.testing.assert_array_equal(epoch, np.repeat([0, 1, 2], 11))
    orders = index.reshape(3, 11)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(11), (3, 1)))
    assert len({tuple(order) for order in orders}) == 3


def test_any_cut_of_the_run_gives_the_same_records():
    order = TrainingOrder(7, seed=2, stage=1)
    whole, epochs, _ = order.rows(0, 40)
    parts = [order.rows(start, start + 5) for start in range(0, 40, 5)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), whole)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), epochs)


def test_evaluation_marks_what_lies_past_the_end():
    index, _, valid = EvaluationOrder(5).rows(3, 8)
    np.testing.assert_array_equal(index, [3, 4, 0, 0, 0])
    np.testing.assert_array_equal(valid, [True, True, False, False, False])


def test_a_limited_evaluation_is_spread_over_the_source():
    order = EvaluationOrder(10, limit=4)
    assert len(order) == 4
    np.testing.assert_array_equal(order.rows(0, 4)[0], [0, 2, 5, 7])
    assert len(EvaluationOrder(3, limit=9)) == 3
