"""What objectives share: running networks with and without batch statistics, and what an encoder can predict."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.objectives.interface import (
    Variables,
    apply_network,
    carry_nothing,
    encoder_predictions,
    init_network,
)


class Counting(nn.Module):
    """Adds to its input how often it was run in training."""

    @nn.compact
    def __call__(self, x, *, train):
        count = self.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.float32))
        if train and not self.is_initializing():
            count.value = count.value + 1
        return x + count.value + self.param("shift", nn.initializers.ones, (), jnp.float32)


def test_a_fresh_network_gives_output_parameters_and_the_other_collections():
    output, params, others = init_network(Counting(), jax.random.key(0), jnp.float32(3), train=False)
    assert output == 4
    assert params == {"shift": 1}
    assert others == {"batch_stats": {"count": 0}}


def test_statistics_move_in_training_and_in_training_alone():
    _, params, statistics = init_network(Counting(), jax.random.key(0), jnp.float32(3), train=False)
    output, moved = apply_network(Counting(), params, statistics, jnp.float32(3), train=True)
    assert (output, moved) == (5, {"batch_stats": {"count": 1}})
    output, same = apply_network(Counting(), params, moved, jnp.float32(3), train=False)
    assert (output, same) == (5, moved)


def test_predictions_use_the_carried_statistics_and_leave_them():
    variables = Variables(
        {"encoder": {"shift": jnp.float32(1)}}, {"encoder": {"batch_stats": {"count": jnp.float32(7)}}}
    )
    predict = encoder_predictions(Counting())
    assert set(predict) == {"features"}  # this one has no attention to show
    assert predict["features"](variables, {"image": jnp.float32(3)}) == 11


def test_a_method_that_carries_nothing_gives_back_what_it_got():
    extra = {"encoder": {"count": np.ones(2)}}
    assert carry_nothing({}, extra, jnp.int32(3)) is extra
