"""SwAV: what the queue holds and when it counts, prototypes on the sphere; tests/losses has the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.cases_swav import CASES
from vfm_jax.losses.self_distillation import sinkhorn, swapped_prediction

B, D = 4, 16


@pytest.fixture(scope="module")
def objective():
    return CASES["swav queue"].make()  # 20 embeddings, from step 2 on


@pytest.fixture(scope="module")
def variables(objective):
    crops = {
        "global": jnp.zeros((B, 2, 8, 12, 3)),
        "local": jnp.zeros((B, 3, 4, 8, 3)),
        "index": jnp.arange(B),
        "epoch": jnp.zeros(B, jnp.int32),
    }
    return jax.jit(objective.init)(jax.random.key(0), crops)


def _pooled(seed):
    return jax.random.normal(jax.random.key(seed), (B, 5, D), jnp.float32)


def _embeddings(variables, pooled):
    """The projector by hand: dense, batch norm, ReLU, dense with offset; unit length."""
    params = jax.tree.map(np.asarray, variables.params["projector"])
    hidden = np.asarray(pooled).reshape(-1, D) @ params["kernel_0"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    norm = params["norm_0"]["norm"]
    hidden = np.maximum(hidden * norm["scale"] + norm["bias"], 0)
    made = hidden @ params["kernel_1"] + params["offset_1"]["bias"]
    return jnp.asarray(made / np.linalg.norm(made, axis=1, keepdims=True)).reshape(B, 5, -1)


def test_the_queue_holds_the_newest_embeddings_first_and_counts_once_full(objective, variables):
    criterion = jax.jit(objective.criterion)
    kernel, extra, newest = variables.params["prototypes"]["kernel"], variables.extra, []
    for step in range(9):
        pooled = _pooled(step)
        embeddings = _embeddings(variables, pooled)
        scores = embeddings @ kernel
        count = max(step - 2, 0) * B
        assignments = []
        for view in range(2):
            if count >= 20:  # five batches fill it
                np.testing.assert_allclose(
                    extra["queue"][view], np.concatenate(newest[::-1])[:20, view], rtol=1e-4, atol=1e-5
                )
                own = jnp.concatenate([extra["queue"][view] @ kernel, scores[:, view]])
            else:
                own = scores[:, view]
            assignments.append(sinkhorn(own, 0.05)[-B:])
        expected = swapped_prediction(scores, jnp.stack(assignments, axis=1), 0.1)
        loss, (extra, _) = criterion(variables.params, extra, pooled, jnp.int32(step))
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
        if step >= 2:
            newest.append(np.asarray(embeddings[:, :2]))
        else:
            np.testing.assert_array_equal(extra["queue"], 0)


def test_prototypes_begin_and_stay_at_unit_length_and_their_gradient_is_that_of_a_linear_layer(objective, variables):
    kernel = variables.params["prototypes"]["kernel"]
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=0), 1.0, rtol=1e-6)
    moved = {**variables.params, "prototypes": {"kernel": kernel * 3.0}}
    np.testing.assert_allclose(objective.constrain(moved)["prototypes"]["kernel"], kernel, rtol=1e-6)

    def loss(kernel):
        params = {**variables.params, "prototypes": {"kernel": kernel}}
        return objective.criterion(params, variables.extra, _pooled(1), jnp.int32(0))[0]

    embeddings = _embeddings(variables, _pooled(1))
    fixed = jnp.stack([sinkhorn((embeddings @ kernel)[:, view], 0.05) for view in range(2)], axis=1)
    expected = jax.grad(lambda kernel: swapped_prediction(embeddings @ kernel, fixed, 0.1))(kernel)
    np.testing.assert_allclose(jax.grad(loss)(kernel), expected, rtol=1e-3, atol=1e-5)
