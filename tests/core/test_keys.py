"""Random streams follow from seed, stage, step and name, and from nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.core.keys import example_keys, key_for, stream


def _data(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_keys_differ_by_seed_step_name_and_stage():
    keys = [key_for(3, 5, "mask", 1), key_for(4, 5, "mask", 1), key_for(3, 6, "mask", 1), key_for(3, 5, "views", 1)]
    keys += [key_for(3, 5, "mask", 2), key_for(3, 1, "mask", 5)]  # step and stage do not stand for one another
    assert len({tuple(_data(key)) for key in keys}) == len(keys)


def test_a_key_depends_on_nothing_that_was_drawn_or_asked_for_before():
    before = _data(key_for(3, 5, "mask", 1))
    jax.random.normal(key_for(3, 5, "another", 1), (7,))
    assert _data(key_for(3, 5, "mask", 1)) == before


def test_a_traced_step_gives_the_key_of_the_plain_number():
    traced = jax.jit(lambda step: key_for(3, step, "mask", 1))(jnp.int32(5))
    assert _data(traced) == _data(key_for(3, 5, "mask", 1))


def test_streams_stay_what_they_are_from_version_to_version():
    """A run that is resumed after an upgrade must draw what it would have drawn."""
    assert _data(key_for(3, 5, "mask", 1)) == [4076258454, 2304207906]


def test_sub_streams_differ_by_name_and_from_their_parent():
    key = key_for(3, 5, "step")
    assert len({tuple(_data(k)) for k in (key, stream(key, "mask"), stream(key, "drop_path"))}) == 3


def test_example_keys_differ_by_epoch_and_index():
    key = jax.random.key(1)
    epoch, index = (grid.ravel() for grid in np.indices((3, 5)).astype(np.int32))
    assert len({tuple(row) for row in _data(example_keys(key, jnp.asarray(epoch), jnp.asarray(index)))}) == 15


def test_an_example_keeps_its_key_wherever_it_stands_in_the_batch():
    key, epoch, index = jax.random.key(1), jnp.array([0, 2, 2, 1, 0]), jnp.array([11, 4, 7, 4, 3])
    whole = np.asarray(_data(example_keys(key, epoch, index)))
    part = jnp.array([3, 1])
    np.testing.assert_array_equal(_data(example_keys(key, epoch[part], index[part])), whole[part])
