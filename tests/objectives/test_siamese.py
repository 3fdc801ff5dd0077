"""BYOL, SimSiam, MoCo and MoCo v3: which view is compared with which, what batch norm sees, what the queue holds."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.types import Features
from vfm_jax.losses.contrastive import info_nce, l2_normalize
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.objectives.byol import Seen
from vfm_jax.objectives.interface import Variables
from vfm_jax.optim import SCHEDULES

STEP = jnp.int32(0)
SIAMESE = ("byol", "simsiam", "moco_v3")


class Same(nn.Module):
    """A head that gives back what it gets."""

    @nn.compact
    def __call__(self, x, *, train):
        return x


class Twice(nn.Module):
    """A predictor whose output no mistake would take for its input."""

    @nn.compact
    def __call__(self, x, *, train):
        return 2.0 * x + 1.0


class Pixels(nn.Module):
    """The mean colour of an image as its features."""

    @nn.compact
    def __call__(self, image, *, keys=None, train=False):
        mean = jnp.mean(image, axis=(1, 2)) * self.param("scale", nn.initializers.ones, (3,), jnp.float32)[None]
        return Features(tokens=mean[:, None], pooled=mean)


def _batch(size=4, views=2):
    image = jax.random.normal(jax.random.key(2), (size, views, 8, 8, 3), jnp.float32)
    return {"image": image, "index": jnp.arange(size), "epoch": jnp.zeros(size, jnp.int32)}


def _fresh(objective, batch):
    return jax.jit(objective.init)(jax.random.key(0), batch)


@pytest.mark.parametrize("name", ["byol", "byol_b"])
def test_byol_predicts_the_target_of_the_other_view_as_the_authors(golden_directory, name):
    golden = {k: jnp.asarray(v) for k, v in np.load(golden_directory / f"losses/{name}.npz").items() if k != "meta"}
    objective = OBJECTIVES["byol"](None, Same(), Same())
    nothing = {"projector": {}, "predictor": {}, "target": {"projector": {}}}
    online = jnp.stack([golden["pred1"], golden["pred2"]], axis=1)
    target = jnp.stack([golden["target_for_2"], golden["target_for_1"]], axis=1)

    def loss(outputs):
        return objective.criterion(nothing, nothing, outputs, STEP)[0]

    value, grads = jax.value_and_grad(loss)(Seen(online, target))
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads.online[:, 0], golden["grad_pred1"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads.online[:, 1], golden["grad_pred2"], rtol=1e-5, atol=1e-6)
    assert np.abs(grads.target).max() == 0


def test_moco_v3_finds_the_key_of_the_other_view_as_the_authors(golden_directory):
    golden = np.load(golden_directory / "losses/mocov3.npz")
    temperature = json.loads(str(golden["meta"]))["config"]["T"]
    objective = OBJECTIVES["moco_v3"](None, Same(), Same(), temperature=temperature)
    nothing = {"projector": {}, "predictor": {}, "target": {"projector": {}}}
    query, key = (jnp.stack([golden[f"{kind}{view}"] for view in (1, 2)], axis=1) for kind in "qk")

    def loss(outputs):
        return objective.criterion(nothing, nothing, outputs, STEP)[0]

    value, grads = jax.value_and_grad(loss)(Seen(query, key))
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads.online[:, 0], golden["grad_q1"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads.online[:, 1], golden["grad_q2"], rtol=1e-5, atol=1e-6)
    assert np.abs(grads.target).max() == 0


def test_the_keys_of_moco_v3_are_made_as_the_authors_make_them():
    """Their model averages first and then looks: k ← m_t · k + (1 - m_t) · q_t, by the momentum of that step."""
    momentum = SCHEDULES["cosine"](base=0.5, end=1.0, total_steps=4)
    objective = OBJECTIVES["moco_v3"](Pixels(), Same(), Same(), target_momentum=momentum)
    params, extra = _fresh(objective, _batch())
    online = np.float32([[1.0, 1.0, 1.0], [2.0, 0.0, -1.0], [3.0, 5.0, 0.5], [0.0, 1.0, 7.0], [9.0, 9.0, 9.0]])
    keys = online[0]
    for step in range(4):
        m = float(momentum(step))
        keys = m * keys + (1 - m) * online[step]
        np.testing.assert_allclose(extra["target"]["encoder"]["scale"], keys, rtol=1e-6)
        updated = {**params, "encoder": {"scale": jnp.asarray(online[step + 1])}}
        extra = objective.after_update(updated, extra, jnp.int32(step))
    np.testing.assert_allclose(extra["target"]["encoder"]["scale"], keys, rtol=1e-6)  # the last momentum is 1


def test_simsiam_draws_the_prediction_of_a_view_to_the_projection_of_the_other_which_stands_still():
    objective = OBJECTIVES["simsiam"](None, Same(), Twice())
    z = jax.random.normal(jax.random.key(1), (5, 2, 6), jnp.float32)
    nothing = {"projector": {}, "predictor": {}}

    def written_out(z, still):
        p = 2.0 * z + 1.0
        cosine = [
            jnp.sum(p[:, v] * still[:, 1 - v], axis=1)
            / jnp.linalg.norm(p[:, v], axis=1)
            / jnp.linalg.norm(still[:, 1 - v], axis=1)
            for v in (0, 1)
        ]
        return -0.5 * (jnp.mean(cosine[0]) + jnp.mean(cosine[1]))

    value, grad = jax.value_and_grad(lambda z: objective.criterion(nothing, nothing, z, STEP)[0])(z)
    expected, expected_grad = jax.value_and_grad(written_out)(z, z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SIAMESE)
def test_batch_norm_of_encoder_and_heads_sees_one_view_at_a_time(name):
    encoder = MODELS["resnet"](variant="18", width=4, depths=(1,), widths=(4,), stem="cifar")
    head = MODELS["projection_head"](hidden_dim=5, out_dim=3, last_norm="none")
    objective = OBJECTIVES[name](encoder, head, head)
    batch = _batch()
    params, extra = _fresh(objective, batch)

    @jax.jit
    def run(image):
        outputs, after = objective.forward(params, extra, batch | {"image": image}, jax.random.key(1), STEP)
        return outputs, objective.criterion(params, after, outputs, STEP)[1][0]

    outputs, after = run(batch["image"])
    changed, _ = run(batch["image"].at[:, 1].set(jnp.cos(3.0 * batch["image"][:, 1])))
    for one, other in zip(jax.tree.leaves(outputs), jax.tree.leaves(changed), strict=True):
        np.testing.assert_allclose(one[:, 0], other[:, 0], rtol=1e-5, atol=1e-6)
        assert np.abs(one[:, 1] - other[:, 1]).max() > 1e-4
    online = np.asarray(jax.tree.leaves(outputs)[0] @ params["projector"]["kernel_0"], np.float64)
    first, second = online.mean(axis=0)
    expected = 0.9 * 0.1 * first + 0.1 * second  # two moves from zero with momentum 0.9
    running = after["projector"]["batch_stats"]["norm_0"]["norm"]["mean"]
    np.testing.assert_allclose(running, expected, rtol=1e-4, atol=1e-6)


def test_the_queue_holds_the_newest_keys_first_in_the_order_of_their_batch():
    objective = OBJECTIVES["moco"](Pixels(), Same(), temperature=0.5, queue_size=6)
    batch = _batch()
    params, extra = _fresh(objective, batch)
    start = extra["queue"]
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, rtol=1e-5)
    outputs, extra = objective.forward(params, extra, batch, jax.random.key(1), STEP)
    loss, (extra, _) = objective.criterion(params, extra, outputs, STEP)

    query, key = (jnp.mean(batch["image"][:, v], axis=(1, 2)) for v in (0, 1))  # the second view has the key
    np.testing.assert_allclose(loss, jnp.mean(info_nce(query, key, 0.5, start)), rtol=1e-5)
    np.testing.assert_allclose(extra["queue"], jnp.concatenate([l2_normalize(key), start[:2]]), rtol=1e-4, atol=1e-6)
    _, (extra, _) = objective.criterion(params, extra, outputs, STEP)
    np.testing.assert_allclose(extra["queue"][4:], l2_normalize(key)[:2], rtol=1e-4, atol=1e-6)


def test_a_batch_larger_than_the_queue_leaves_its_first_keys():
    objective = OBJECTIVES["moco"](Pixels(), Same(), queue_size=3)
    batch = _batch()
    params, extra = _fresh(objective, batch)
    outputs, extra = objective.forward(params, extra, batch, jax.random.key(1), STEP)
    _, (after, _) = objective.criterion(params, extra, outputs, STEP)
    np.testing.assert_allclose(after["queue"], l2_normalize(outputs.key)[:3], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["byol", "moco", "moco_v3"])
def test_the_online_encoder_is_what_is_evaluated(name):
    heads = (Same(),) if name == "moco" else (Same(), Same())
    objective = OBJECTIVES[name](Pixels(), *heads)
    batch = _batch()
    params, extra = _fresh(objective, batch)
    assert "teacher" not in extra
    moved = {**params, "encoder": {"scale": jnp.array([1.0, 2.0, 3.0])}}
    features = objective.predict["features"](Variables(moved, extra), {"image": batch["image"][:, 0]})
    np.testing.assert_allclose(
        features.pooled, jnp.mean(batch["image"][:, 0], axis=(1, 2)) * jnp.array([1.0, 2.0, 3.0])[None], rtol=1e-5
    )
