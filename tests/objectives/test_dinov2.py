"""DINOv2 and DINOv3: which patches are hidden and compared, how the terms add up, what the Gram teacher holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.case import BATCH, batch_of
from tests.objectives.cases_dinov2 import CASES, encoder, head
from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.losses.self_distillation import dino_loss, sinkhorn
from vfm_jax.objectives.crop_masks import CropMasks
from vfm_jax.objectives.dinov2 import dinov2
from vfm_jax.objectives.dinov3 import dinov3
from vfm_jax.objectives.interface import Variables

KEY = jax.random.key(5)
BATCHED = batch_of(CASES["dinov2"], BATCH)


def _looked(objective, batch=BATCHED):
    variables = jax.jit(objective.init)(jax.random.key(0), batch)
    drawn = objective.draw(batch, KEY, 0)
    outputs, _ = jax.jit(objective.forward)(*variables, drawn, KEY, 0)
    return variables, outputs


@pytest.fixture(scope="module")
def separate():
    objective = dinov2(encoder(), head(), head(out_dim=10))
    return objective, *_looked(objective)


MANY = {"index": jnp.arange(16), "epoch": jnp.zeros(16, jnp.int32)}
ENDS = np.floor(144 * np.linspace(0.1, 0.5, 9, dtype=np.float32))  # of the intervals of eight masked crops


@pytest.mark.parametrize("exact", [False, True])
def test_half_of_the_crops_of_a_group_are_masked_at_ratios_spread_evenly(exact):
    masked = CropMasks(0.5, (0.1, 0.5), exact, group_size=8).draw(KEY, MANY, 2, (12, 12))
    counts = np.asarray(masked).sum(axis=2)  # of 16 images, two crops
    assert set((counts > 0).sum(axis=1)) == {0, 1, 2}  # of one image none, one or both
    for group in (counts[:8], counts[8:]):
        (rising,) = [np.sort(group.reshape(-1))[8:]]
        assert (group > 0).sum() == 8
        if exact:
            np.testing.assert_array_equal(rising, ENDS[1:])
        else:  # blocks may hide fewer than asked for
            assert (rising <= ENDS[1:]).all()
            assert np.mean(rising >= ENDS[:-1]) > 0.5
    assert (counts[:8] != counts[8:]).any()


def test_the_patches_of_a_group_that_are_compared_are_its_hidden_ones_and_each_crops_weights_sum_to_one():
    masks = CropMasks(0.5, (0.1, 0.5), False, group_size=4)
    drawn = masks.draw(KEY, MANY, 2, (12, 12))
    tokens = jax.random.normal(KEY, (16, 2, 144, 3))
    index, weight = masks.hidden(drawn)
    masked = np.asarray(drawn)
    assert index.shape == (4, np.floor(144 * np.linspace(0.1, 0.5, 5, dtype=np.float32))[1:].sum())
    for group in range(4):
        rows = slice(4 * group, 4 * group + 4)
        found = np.asarray(masks.take(tokens, index)).reshape(4, -1, 3)[group][weight[group] > 0]
        np.testing.assert_array_equal(found, np.asarray(tokens)[rows][masked[rows]])
        expected = (1 / masked[rows].sum(axis=2, keepdims=True).clip(1) * np.ones((1, 1, 144)))[masked[rows]]
        np.testing.assert_allclose(weight[group][weight[group] > 0], expected, rtol=1e-6)


def test_masks_that_cannot_be_shared_out_are_refused():
    with pytest.raises(UserError, match="mask_group_size is 5, and the batch has 16 images: groups must divide it"):
        CropMasks(0.5, (0.1, 0.5), False, group_size=5).draw(KEY, MANY, 2, (12, 12))
    with pytest.raises(UserError, match="no patch would be hidden"):
        CropMasks(0.5, (0.1, 0.5), False, group_size=1).draw(KEY, MANY, 2, (1, 1))


def test_the_patches_compared_are_those_whose_pixels_the_student_does_not_see(separate):
    objective, variables, outputs = separate
    drawn = objective.draw(BATCHED, KEY, 0)

    def pull(pixels):
        seen, _ = objective.forward(*variables, drawn | {"global": pixels}, KEY, 0)
        return jnp.sum(jnp.sin(seen.student[:, :2]))

    seen = np.abs(jax.jit(jax.grad(pull))(BATCHED["global"]))
    blind = seen.reshape(BATCH, 2, 4, 2, 6, 2, 3).max(axis=(3, 5, 6)) == 0  # b t rows columns
    np.testing.assert_array_equal(blind.reshape(BATCH, 2, 24), outputs.masked)
    assert outputs.masked.any(axis=2).sum() == BATCH


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
    masked = outputs.seen.masked.any(axis=2)
    np.testing.assert_allclose(outputs.drift[~masked], 0, atol=1e-10)
    assert outputs.drift[masked].min() > 1e-8


def test_the_gram_teacher_becomes_the_teacher_of_that_moment_so_many_times():
    objective = dinov3(encoder(), head(), head(), gram_weight=1.0, gram_refresh_steps=3, gram_refreshes=2)
    params, extra = jax.jit(objective.init)(jax.random.key(0), BATCHED)
    update = jax.jit(objective.after_update)
    refreshed = []
    for step in range(12):
        params = jax.tree.map(lambda leaf: leaf + 1, params)
        before, extra = extra["frozen"]["gram_teacher"], update(params, extra, step)
        now = extra["frozen"]["gram_teacher"]
        if any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), before, now))):
            refreshed.append(step)
            jax.tree.map(np.testing.assert_array_equal, now, extra["teacher"]["encoder"])
    assert refreshed == [2, 5]


def test_a_gram_teacher_of_its_own_is_not_begun_anew_by_loaded_parameters_and_may_be_wider():
    objective = dinov3(encoder(), head(), head(), encoder(width=24), gram_weight=1.0)
    variables = jax.jit(objective.init)(jax.random.key(0), BATCHED)
    before = variables.extra["frozen"]["gram_teacher"]
    after = objective.after_load(variables.params, variables.extra)["frozen"]["gram_teacher"]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    with pytest.raises(UserError, match="gram_teacher is another network than config.networks.encoder"):
        dinov3(
            encoder(), head(), head(), encoder(width=24), gram_weight=1.0, gram_refresh_steps=2, gram_refreshes=1
        ).init(jax.random.key(0), BATCHED)


def test_without_gram_anchoring_there_is_no_gram_teacher():
    assert "frozen" not in jax.eval_shape(dinov3(encoder(), head(), head()).init, jax.random.key(0), BATCHED).extra
    with pytest.raises(UserError, match="gram_refreshes needs gram_refresh_steps"):
        dinov3(encoder(), head(), head(), gram_weight=1.0, gram_refreshes=2)
    with pytest.raises(UserError, match="gram_teacher is for Gram anchoring"):
        dinov3(encoder(), head(), head(), encoder())


# ---------------------------------------------------------------------------------------------- a frozen teacher


@pytest.fixture(scope="module")
def distilled():
    objective = CASES["dinov2 distilled"].make()
    return objective, *_looked(objective), objective.draw(BATCHED, KEY, 0)


def test_a_student_of_a_frozen_teacher_sees_every_patch_and_all_are_compared(distilled):
    objective, variables, outputs, drawn = distilled

    def pull(pixels):
        seen, _ = objective.forward(*variables, drawn | {"global": pixels}, KEY, 0)
        return jnp.sum(jnp.sin(seen.student[:, :2]))

    assert np.abs(jax.jit(jax.grad(pull))(drawn["global"])).min() > 0
    assert outputs.masked.all()


def test_targets_are_a_frozen_teachers_own_heads_of_crops_with_as_many_patches_as_the_students(distilled):
    objective, (params, extra), outputs, drawn = distilled
    large = jax.image.resize(drawn["global"], (BATCH, 2, 16, 24, 3), "linear")
    seen = encoder(variant="mu/4", width=24, mask_token=False).apply(
        {"params": extra["frozen"]["teacher"]}, large.reshape(-1, 16, 24, 3)
    )
    np.testing.assert_allclose(outputs.teacher.reshape(-1, 24), seen.pooled, atol=2e-5)
    np.testing.assert_allclose(outputs.teacher_patches.reshape(-1, 24, 24), seen.patch_tokens, atol=2e-5)

    logits = head(hidden_dim=16).apply({"params": extra["frozen"]["teacher_head"]}, seen.pooled)
    targets = sinkhorn(logits, 0.07).reshape(BATCH, 2, -1)
    student = head().apply({"params": params["head"]}, outputs.student)
    _, (_, measured) = jax.jit(objective.criterion)(params, extra, outputs, 0)
    found = measured["loss/dino_global"] + measured["loss/dino_local"]
    np.testing.assert_allclose(found, dino_loss(student, targets, 0.1), rtol=1e-4)


def test_nothing_moves_a_frozen_teacher_and_the_students_average_is_the_result(distilled):
    objective, (params, extra), _, drawn = distilled

    @jax.jit
    def pull(frozen):
        outputs, after = objective.forward(params, {**extra, "frozen": frozen}, drawn, KEY, 0)
        return objective.criterion(params, after, outputs, 0)[0]

    grads = jax.grad(pull)(extra["frozen"])
    assert set(grads) == {"teacher", "teacher_head", "teacher_patch_head"}
    for leaf, grad in named_leaves(grads).items():
        assert np.abs(grad).max() == 0, leaf

    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    after = objective.after_update(moved, extra, jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, after["frozen"], extra["frozen"])
    result = Variables(moved, after).result.params
    for role in ("encoder", "head", "patch_head"):
        jax.tree.map(
            lambda found, start: np.testing.assert_allclose(found, start + 0.1, rtol=1e-5, atol=1e-6),
            result[role],
            params[role],
        )


def test_heads_that_do_not_fit_a_frozen_teacher_are_refused():
    with pytest.raises(UserError, match=r"networks\.patch_head has none, config\.networks\.teacher_patch_head 14"):
        dinov2(encoder(), head(), None, encoder(), head(), head())
    with pytest.raises(UserError, match=r"head has 14 prototypes, config\.networks\.teacher_head 10 prototypes"):
        dinov2(encoder(), head(), None, encoder(), head(out_dim=10))
    with pytest.raises(UserError, match=r"config\.networks\.teacher_head needs config\.networks\.teacher"):
        dinov2(encoder(), head(), None, None, head())
