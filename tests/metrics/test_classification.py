"""Top-k accuracy as sums."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.metrics.classification import top_k_correct


def count(logits, labels, valid, k):
    correct, total = top_k_correct(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32), jnp.asarray(valid, bool), k
    )
    assert correct.dtype == total.dtype == jnp.float32
    return float(correct), float(total)


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_counts_the_valid_rows_whose_label_is_among_the_k_largest(k):
    rng = np.random.default_rng(0)
    logits, labels, valid = rng.normal(size=(23, 7)), rng.integers(0, 7, 23), rng.random(23) < 0.7
    order = np.argsort(-logits, axis=1)[:, :k]
    expected = sum(labels[i] in order[i] for i in range(23) if valid[i])
    assert count(logits, labels, valid, k) == (expected, valid.sum())


def test_sums_over_batches_are_those_of_the_whole():
    rng = np.random.default_rng(1)
    logits, labels, valid = rng.normal(size=(11, 3)), rng.integers(0, 3, 11), rng.random(11) < 0.7
    parts = [count(logits[rows], labels[rows], valid[rows], 1) for rows in (slice(0, 4), slice(4, 11))]
    assert tuple(np.sum(parts, axis=0)) == count(logits, labels, valid, 1)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_logits_that_say_nothing_score_chance(value):
    assert count(np.full((6, 3), value), [0, 0, 1, 1, 2, 2], np.ones(6), 1) == (2, 6)


def test_no_label_is_right_only_because_it_is_missing():
    assert count(np.zeros((2, 3)), [-1, 0], np.ones(2), 3) == (1, 2)
