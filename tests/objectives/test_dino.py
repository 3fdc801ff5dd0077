"""DINO and iBOT: who sees what, which pairs meet, what the centre remembers; tests/losses has the losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.case import Case, batch_of, tiny_vit
from tests.objectives.cases_dino import CASES, CROPS
from tests.objectives.cases_ibot import CASES as IBOT_CASES
from vfm_jax.core.errors import UserError
from vfm_jax.losses.self_distillation import centered_softmax, dino_loss, sinkhorn
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def made():
    objective = CASES["dino"].make()
    batch = batch_of(CASES["dino"], 4)
    return objective, batch, jax.jit(objective.init)(jax.random.key(0), batch)


def test_the_teacher_sees_global_crops_alone_and_the_student_every_crop(made):
    objective, batch, variables = made
    forward = jax.jit(lambda batch: objective.forward(*variables, batch, KEY, 0)[0])
    before = forward(batch)
    assert before.student.shape[:2] == (4, 5) and before.teacher.shape[:2] == (4, 2)
    np.testing.assert_allclose(before.student[:, :2], before.teacher, rtol=1e-5, atol=1e-6)  # a copy, at first
    changed = forward(batch | {"local": batch["local"].at[:, 1].add(1.0)})
    np.testing.assert_array_equal(changed.teacher, before.teacher)
    moved = np.abs(changed.student - before.student).max(axis=(0, 2)) > 1e-4
    np.testing.assert_array_equal(moved, [False, False, False, True, False])


@pytest.mark.parametrize("assignment", ["center", "sinkhorn"])
def test_the_loss_is_of_the_teachers_assignments_and_the_center_from_before_the_batch(assignment):
    head = MODELS["dino_head"](out_dim=14, hidden_dim=12, bottleneck_dim=8)
    objective = OBJECTIVES["dino"](tiny_vit(), head, assignment=assignment, teacher_temperature=0.05)
    batch = batch_of(CASES["dino"], 4)
    params, extra = jax.jit(objective.init)(jax.random.key(0), batch)
    extra = {**extra, "center": jnp.linspace(-0.1, 0.1, 14, dtype=jnp.float32)}
    outputs, _ = objective.forward(params, extra, batch, KEY, 0)
    loss, (after, measured) = objective.criterion(params, extra, outputs, 0)
    student = head.apply({"params": params["head"]}, outputs.student)
    teacher = head.apply({"params": extra["teacher"]["head"]}, outputs.teacher)
    balanced = sinkhorn(teacher.reshape(8, 14), 0.05).reshape(teacher.shape)
    targets = balanced if assignment == "sinkhorn" else centered_softmax(teacher, extra["center"], 0.05)
    np.testing.assert_allclose(loss, dino_loss(student, targets, 0.1), rtol=1e-5)
    expected = 0.9 * extra["center"] + 0.1 * teacher.mean(axis=(0, 1))
    np.testing.assert_allclose(after["center"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(measured["center_norm"], np.linalg.norm(expected), rtol=1e-5)


def test_no_local_crops_and_batch_norm_are_possible():
    encoder = MODELS["resnet"](stem="cifar", block="basic", depths=(1, 1), widths=(4, 8), stem_width=4)
    objective = OBJECTIVES["dino"](encoder, MODELS["dino_head"](out_dim=14, hidden_dim=12, bottleneck_dim=8))
    batch = batch_of(Case(lambda: objective, {"global": CROPS["global"]}), 4)
    variables = jax.jit(objective.init)(jax.random.key(0), batch)
    # Operation by operation: within one program the two networks' sums may be rounded differently.
    outputs, extra = objective.forward(*variables, batch, KEY, 0)
    np.testing.assert_allclose(outputs.student, outputs.teacher, rtol=1e-5, atol=1e-6)
    # Both have seen the same batch; each keeps statistics of its own.
    jax.tree.map(np.testing.assert_array_equal, extra["encoder"], extra["teacher_statistics"]["encoder"])
    before = jax.tree.leaves(variables.extra["encoder"])
    assert any(np.abs(a - b).max() > 0 for a, b in zip(before, jax.tree.leaves(extra["encoder"]), strict=True))


def test_a_recipe_without_global_crops_is_told_which_views_are_missing(made):
    objective, batch, _ = made
    with pytest.raises(UserError, match=r"config\.views\.global"):
        objective.init(KEY, {"image": batch["global"]})


@pytest.fixture(scope="module")
def masked():
    objective = IBOT_CASES["ibot two heads"].make()  # every crop has hidden patches
    batch = batch_of(IBOT_CASES["ibot two heads"], 4)
    return objective, batch, jax.jit(objective.init)(jax.random.key(0), batch)


def test_hidden_patches_reach_the_teacher_but_not_the_student(masked):
    objective, batch, variables = masked
    forward = jax.jit(lambda batch: objective.forward(*variables, batch, KEY, 0)[0])
    before = forward(batch)
    hidden = before.masked.reshape(4, 2, 2, 3).repeat(4, axis=2).repeat(4, axis=3)[..., None]
    after = forward(batch | {"global": jnp.where(hidden, batch["global"] + 3.0, batch["global"])})
    np.testing.assert_array_equal(after.masked, before.masked)
    np.testing.assert_array_equal(after.student_patches, before.student_patches)
    np.testing.assert_array_equal(after.student, before.student)
    assert np.abs(after.teacher_patches - before.teacher_patches).max() > 1e-3
    counts = before.masked.sum(axis=2)  # between 0.4 and 0.7 of 6, rounded down
    assert counts.min() >= 2 and counts.max() <= 4 and not np.array_equal(before.masked[:, 0], before.masked[:, 1])


def test_only_hidden_patches_count_and_a_crop_without_any_counts_as_zero(masked):
    objective, batch, variables = masked
    outputs, extra = objective.forward(*variables, batch, KEY, 0)
    outputs = outputs._replace(masked=outputs.masked.at[0].set(False))

    def patch_loss(tokens):
        made = objective.criterion(variables.params, extra, outputs._replace(student_patches=tokens), 0)
        return made[1][1]["loss/patch"]

    grad = np.abs(jax.grad(patch_loss)(outputs.student_patches)).max(axis=-1)
    np.testing.assert_array_equal(grad > 0, outputs.masked)


def test_nothing_is_hidden_before_masking_begins():
    head = MODELS["dino_head"](out_dim=14, hidden_dim=12, bottleneck_dim=8)
    objective = OBJECTIVES["ibot"](
        tiny_vit(mask_token=True), head, mask_start_steps=5, mask_shape="random", mask_ratios=((0.5, 0.5),)
    )
    batch = batch_of(IBOT_CASES["ibot"], 4)
    variables = jax.jit(objective.init)(jax.random.key(0), batch)
    forward = jax.jit(lambda step: objective.forward(*variables, batch, KEY, step)[0].masked)
    assert [int(forward(step).sum()) for step in (4, 5)] == [0, 4 * 2 * 3]
    with pytest.raises(UserError, match="mask_token=True"):
        OBJECTIVES["ibot"](tiny_vit(), head)
