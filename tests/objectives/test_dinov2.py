"""DINOv2 and DINOv3: which patches are hidden and compared, how the terms add up, what the Gram teacher holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.case import BATCH, batch_of
from tests.objectives.cases_dinov2 import CASES, encoder, head
from vfm_jax.core.errors import UserError
from vfm_jax.losses.self_distillation import dino_loss, sinkhorn
from vfm_jax.objectives.dinov2 import dinov2
from vfm_jax.objectives.dinov3 import dinov3

KEY = jax.random.key(5)
BATCHED = batch_of(CASES["dinov2"], BATCH)


def _looked(objective, batch=BATCHED):
    variables = jax.jit(objective.init)(jax.random.key(0), batch)
    outputs, _ = jax.jit(objective.forward)(*variables, batch, KEY, 0)
    return variables, outputs


@pytest.fixture(scope="module")
def separate():
    objective = dinov2(encoder(), head(), head(out_dim=10), keep_patches=True)
    return objective, *_looked(objective)


def test_one_global_crop_of_each_image_is_masked_by_a_share_in_the_range(separate):
    _, _, outputs = separate
    np.testing.assert_allclose(outputs.weight.sum(axis=1), 1.0, rtol=1e-6)  # the weights of one crop
    hidden = np.sum(outputs.weight > 0, axis=1)
    assert outputs.weight.shape[1] == 12  # half of the 24 patches of one crop, and none for the other
    assert 1 <= hidden.min() < hidden.max() <= 12


def test_the_patches_compared_are_those_whose_pixels_the_student_does_not_see(separate):
    objective, variables, outputs = separate

    def pull(pixels):
        seen, _ = objective.forward(*variables, BATCHED | {"global": pixels}, KEY, 0)
        return jnp.sum(jnp.sin(seen.student[:, :2]))

    seen = np.abs(jax.jit(jax.grad(pull))(BATCHED["global"]))
    blind = seen.reshape(BATCH, 2, 4, 2, 6, 2, 3).max(axis=(3, 5, 6)) == 0  # b t rows columns
    np.testing.assert_array_equal(blind.sum(axis=(1, 2, 3)), np.sum(outputs.weight > 0, axis=1))
    assert (blind.any(axis=(2, 3)).sum(axis=1) == 1).all()
    for b in range(BATCH):
        crop = int(np.argmax(blind[b].any(axis=(1, 2))))
        tokens = outputs.patches[b, crop][blind[b, crop].reshape(-1)]
        np.testing.assert_array_equal(outputs.student_tokens[b][outputs.weight[b] > 0], tokens)


def test_the_terms_of_crops_are_the_mean_over_pairs_of_different_crops(separate):
    objective, variables, outputs = separate
    _, (_, measured) = jax.jit(objective.criterion)(*variables, outputs, 0)

    def logits(views):
        return head().apply({"params": variables.params["head"]}, views)

    targets = sinkhorn(logits(outputs.teacher).reshape(2 * BATCH, -1), 0.07).reshape(BATCH, 2, -1)
    expected = dino_loss(logits(outputs.student), targets, 0.1)
    np.testing.assert_allclose(measured["loss/dino_global"] + measured["loss/dino_local"], expected, rtol=1e-5)
    assert measured["loss/dino_local"] > 2 * measured["loss/dino_global"]  # 6 pairs to 2


def test_a_shared_head_serves_patches_too():
    variables, _ = _looked(CASES["dinov2"].make())
    assert set(variables.params) == set(variables.extra["teacher"]) == {"encoder", "head"}
    assert {name: leaf.shape for name, leaf in variables.extra["center"].items()} == {
        "crops": (14,),
        "patches": (14,),
    }


def test_a_crop_that_is_not_masked_has_not_drifted_from_its_own_copy():
    objective = dinov3(encoder(), head(), head(), gram_weight=1.0)
    _, outputs = _looked(objective)
    drift = np.sort(outputs.drift, axis=1)
    np.testing.assert_allclose(drift[:, 0], 0, atol=1e-10)
    assert drift[:, 1].min() > 1e-8
    assert outputs.seen.patches is None


def test_the_gram_teacher_becomes_the_teacher_of_that_moment_so_many_times():
    objective = dinov3(encoder(), head(), head(), gram_weight=1.0, gram_refresh_steps=3, gram_refreshes=2)
    params, extra = jax.jit(objective.init)(jax.random.key(0), BATCHED)
    update = jax.jit(objective.after_update)
    refreshed = []
    for step in range(12):
        params = jax.tree.map(lambda leaf: leaf + 1, params)
        before, extra = extra["gram"], update(params, extra, step)
        changed = any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, extra["gram"])))
        if changed:
            refreshed.append(step)
            jax.tree.map(np.testing.assert_array_equal, extra["gram"]["encoder"], extra["teacher"]["encoder"])
    assert refreshed == [2, 5]


def test_without_gram_anchoring_there_is_no_gram_teacher():
    assert "gram" not in jax.eval_shape(dinov3(encoder(), head(), head()).init, jax.random.key(0), BATCHED).extra
    with pytest.raises(UserError, match="gram_refreshes needs gram_refresh_steps"):
        dinov3(encoder(), head(), head(), gram_weight=1.0, gram_refreshes=2)
