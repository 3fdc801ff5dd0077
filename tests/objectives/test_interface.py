"""What objectives share: running networks with and without batch statistics, and what an encoder can predict."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.core.collectives import collectives
from vfm_jax.core.hlo import parse
from vfm_jax.core.sharding import batch_sharding, make_mesh
from vfm_jax.core.types import Features
from vfm_jax.models import MODELS
from vfm_jax.nn.normalization import BatchNorm
from vfm_jax.objectives.interface import (
    Variables,
    apply_network,
    carry_nothing,
    encode_views,
    encoder_predictions,
    init_network,
    project_views,
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


class Standardized(nn.Module):
    """The pixels as features, standardised over the batch, with some noise by the keys."""

    @nn.compact
    def __call__(self, x, *, keys=None, train):
        y = BatchNorm(use_scale=False, use_bias=False)(x.reshape(x.shape[0], -1), train=train)
        drawn = (
            y if keys is None else y + jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys)[:, None]
        )
        return Features(tokens=drawn[:, None], pooled=drawn)


def test_views_go_through_as_one_batch_or_one_after_another():
    images = jax.random.normal(jax.random.key(1), (4, 2, 2, 3, 1), jnp.float32) * jnp.array([1.0, 9.0]).reshape(
        1, 2, 1, 1, 1
    )
    keys = jax.random.split(jax.random.key(2), 8)
    _, params, statistics = init_network(Standardized(), jax.random.key(0), images[:, 0], train=True)
    joint, _ = encode_views(Standardized(), params, statistics, images, keys)
    apart, moved = encode_views(Standardized(), params, statistics, images, keys, together=False)

    first, between = apply_network(Standardized(), params, statistics, images[:, 0], keys=keys[::2], train=True)
    second, after = apply_network(Standardized(), params, between, images[:, 1], keys=keys[1::2], train=True)
    np.testing.assert_allclose(apart.pooled[::2], first.pooled, rtol=1e-5)
    np.testing.assert_allclose(apart.pooled[1::2], second.pooled, rtol=1e-5)
    assert apart.tokens.shape == joint.tokens.shape
    assert np.abs(joint.pooled - apart.pooled).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, moved, after)


def test_a_head_sees_views_as_one_batch_or_one_after_another():
    x = jax.random.normal(jax.random.key(1), (5, 2, 3), jnp.float32) * jnp.array([1.0, 9.0])[None, :, None]
    head = BatchNorm(use_scale=False, use_bias=False)
    _, params, statistics = init_network(head, jax.random.key(0), x[:, 0], train=True)
    joint, _ = project_views(head, params, statistics, x)
    apart, _ = project_views(head, params, statistics, x, together=False)
    np.testing.assert_allclose(jnp.std(joint.reshape(10, 3), axis=0), 1, rtol=1e-3)
    np.testing.assert_allclose(jnp.std(apart, axis=0), 1, rtol=1e-3)
    assert np.abs(jnp.std(joint, axis=0) - 1).min() > 0.1


def test_views_of_an_encoder_without_batch_norm_go_through_in_one_pass_with_their_own_keys():
    encoder = MODELS["vit"](variant="mu/4", width=16, depth=2, heads=2, mlp_dim=24, drop_path=0.5)
    views = jax.random.normal(jax.random.key(1), (4, 2, 8, 8, 3), jnp.float32)
    _, params, statistics = init_network(encoder, jax.random.key(0), views[:, 0])
    keys = jax.random.split(jax.random.key(2), 8)
    joint, _ = encode_views(encoder, params, statistics, views, keys)
    apart, none = encode_views(encoder, params, statistics, views, keys, together=False)
    assert none == {}
    np.testing.assert_array_equal(apart.pooled, joint.pooled)


def test_a_head_of_many_views_sends_nothing_between_devices():
    """The logits of patches are the largest array of iBOT: each device keeps its own images'."""
    mesh = make_mesh(devices=jax.devices()[:4])
    head = MODELS["dino_head"](out_dim=32, hidden_dim=16, bottleneck_dim=8)
    params = head.init(jax.random.key(0), jnp.zeros((1, 8), jnp.float32))["params"]
    views = jax.ShapeDtypeStruct((8, 3, 8), jnp.float32, sharding=batch_sharding(mesh))
    compiled = jax.jit(lambda views: project_views(head, params, {}, views)[0]).lower(views).compile()
    assert not collectives(parse(compiled.as_text()))
