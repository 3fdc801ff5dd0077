"""SimCLR: both views learn, pairs are pairs; the loss itself is held to the authors' in tests/losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.losses.contrastive import nt_xent
from vfm_jax.models import MODELS
from vfm_jax.objectives.simclr import simclr

BATCH = 4


@pytest.fixture(scope="module")
def objective():
    encoder = MODELS["vit"](variant="mu/4", width=16, mlp_dim=24, positions="sincos2d", pooling="mean")
    return simclr(encoder, MODELS["projection_head"](hidden_dim=12, out_dim=6), temperature=0.3)


@pytest.fixture(scope="module")
def batch():
    image = jax.random.normal(jax.random.key(2), (BATCH, 2, 8, 12, 3), jnp.float32)
    return {"image": image, "index": jnp.arange(BATCH) + 9, "epoch": jnp.zeros(BATCH, jnp.int32)}


@pytest.fixture(scope="module")
def variables(objective, batch):
    return jax.jit(objective.init)(jax.random.key(0), batch)


def test_both_views_and_both_networks_get_a_gradient(objective, batch, variables):
    @jax.jit
    def gradients(params, image):
        def loss(params, image):
            outputs, extra = objective.forward(
                params, variables.extra, batch | {"image": image}, jax.random.key(1), 0
            )
            return objective.criterion(params, extra, outputs, 0)[0]

        return jax.grad(loss, argnums=(0, 1))(params, image)

    params, image = gradients(variables.params, batch["image"])
    assert all(np.abs(image[:, view]).max() > 1e-6 for view in (0, 1))
    assert set(params) == {"encoder", "projector"}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(params))


def test_pairs_are_the_views_of_one_image_under_one_batch_norm(objective, batch, variables):
    projector = MODELS["projection_head"](hidden_dim=12, out_dim=6)
    outputs = jax.random.normal(jax.random.key(3), (BATCH, 2, 16), jnp.float32)
    loss, (extra, measurements) = jax.jit(objective.criterion)(variables.params, variables.extra, outputs, 0)
    flat = outputs.reshape(2 * BATCH, 16)  # b1 view 1, b1 view 2, b2 view 1, ...: any order gives the same statistics
    embeddings, moved = projector.apply(
        {"params": variables.params["projector"], **variables.extra["projector"]},
        flat,
        train=True,
        mutable=["batch_stats"],
    )
    expected = nt_xent(embeddings[0::2], embeddings[1::2], 0.3).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(measurements["loss"], loss)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), extra["projector"], dict(moved))


def test_identical_views_find_each_other(objective, batch, variables):
    same = batch | {"image": batch["image"].at[:, 1].set(batch["image"][:, 0])}

    @jax.jit
    def measure(batch):
        outputs, extra = objective.forward(variables.params, variables.extra, batch, jax.random.key(1), 0)
        return outputs, objective.criterion(variables.params, extra, outputs, 0)[1][1]

    outputs, measurements = measure(same)
    np.testing.assert_allclose(outputs[:, 0], outputs[:, 1], rtol=1e-5, atol=1e-6)
    assert measurements["contrastive_accuracy"] == 1


@pytest.mark.parametrize("shape", [(BATCH, 3, 8, 12, 3), (BATCH, 1, 8, 12, 3), (BATCH, 8, 12, 3)])
def test_any_other_number_of_views_is_refused_with_a_way_out(objective, batch, shape):
    other = batch | {"image": jnp.zeros(shape, jnp.float32)}
    with pytest.raises(UserError, match=r"takes two views .* Set num_views=2 in config\.views\.image"):
        jax.eval_shape(objective.init, jax.random.key(0), other)


def test_examples_are_coupled_and_features_are_of_single_images(objective, batch, variables):
    assert not objective.separable
    one = {"image": batch["image"][:, 0]}
    features = jax.eval_shape(objective.predict["features"], variables, one)
    assert features.pooled.shape == (BATCH, 16)
    assert jax.eval_shape(objective.predict["attention"], variables, one).shape == (BATCH, 2, 2, 3)
