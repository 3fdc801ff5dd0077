"""DINO, iBOT and SwAV: losses, assignments and centres against the authors' codes, and what they promise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.losses.self_distillation import (
    centered_softmax,
    dino_loss,
    mask_weights,
    masked_patch_cross_entropy,
    sinkhorn,
    swapped_prediction,
    update_center,
)


def _assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def _golden(directory, name):
    golden = np.load(directory / "losses" / f"{name}.npz")
    return golden, json.loads(str(golden["meta"])).get("config", {})


def _example_first(crop_major, num_examples):
    """(views · b) m, all images of the first crop first, as the authors stack them -> b v m."""
    crop_major = jnp.asarray(crop_major)
    return crop_major.reshape(-1, num_examples, crop_major.shape[-1]).swapaxes(0, 1)


def _crop_first(x):
    return x.swapaxes(0, 1).reshape(-1, x.shape[-1])


@pytest.mark.parametrize("name", ["dino_v1", "dino_v1_b"])
def test_dino_is_the_authors_with_gradient_and_center(golden_directory, name):
    golden, config = _golden(golden_directory, name)
    b = len(golden["teacher"]) // 2
    teacher, center = _example_first(golden["teacher"], b), jnp.asarray(golden["center"][0])
    targets = centered_softmax(teacher, center, float(golden["teacher_temp_schedule"][config["epoch"]]))
    student = _example_first(golden["student"], b)
    loss, grad = jax.value_and_grad(dino_loss)(student, targets, config["student_temp"])
    _assert_close(loss, golden["loss"])
    _assert_close(_crop_first(grad), golden["grad_student"])
    moved = update_center(center, jnp.mean(teacher, axis=(0, 1)), config["center_momentum"])
    _assert_close(moved, golden["new_center"][0])


def test_dinov2_sums_over_all_pairs(golden_directory):
    golden, config = _golden(golden_directory, "dino_v2")
    logits, center = jnp.asarray(golden["teacher"]), jnp.asarray(golden["center"][0])
    student = jnp.asarray(golden["student"]).swapaxes(0, 1)  # b v m
    assignments = {
        "center": centered_softmax(logits, center, config["teacher_temp_center"]),
        "sinkhorn": sinkhorn(logits, config["teacher_temp_sinkhorn"], config["n_iterations"]),
    }
    for how, probabilities in assignments.items():
        _assert_close(probabilities, golden[f"probs_{how}"])
        targets = _example_first(probabilities, student.shape[0])
        loss, grad = jax.value_and_grad(dino_loss)(
            student, targets, config["student_temp"], same_view=True, reduction="sum"
        )
        _assert_close(loss, golden[f"loss_{how}"])
        _assert_close(grad.swapaxes(0, 1), golden[f"grad_student_{how}"])
    for iterations in (1, 10):
        probabilities = sinkhorn(logits, config["teacher_temp_sinkhorn"], iterations)
        _assert_close(probabilities, golden[f"sinkhorn_iter{iterations}"])
    _assert_close(update_center(center, jnp.mean(logits, axis=0), 0.9), golden["new_center"][0])


@pytest.mark.parametrize(("same_view", "name"), [(True, "all"), (False, "ignore_diag")])
def test_dinov3_averages_with_and_without_the_diagonal(golden_directory, same_view, name):
    golden, _ = _golden(golden_directory, "dino_v3")
    logits = jnp.asarray(golden["teacher_logits"])  # t b m
    probabilities = sinkhorn(logits.reshape(-1, logits.shape[-1]), 0.07)
    _assert_close(probabilities.reshape(logits.shape), golden["teacher_probs"])
    student = jnp.asarray(golden["student"]).swapaxes(0, 1)
    targets = jnp.asarray(golden["teacher_probs"]).swapaxes(0, 1)
    loss, grad = jax.value_and_grad(dino_loss)(student, targets, 0.1, same_view=same_view)
    _assert_close(loss, golden[f"loss_{name}"])
    _assert_close(grad.swapaxes(0, 1), golden[f"grad_student_{name}"])


def test_ibot_is_the_authors_with_gradients_and_centers(golden_directory):
    golden, config = _golden(golden_directory, "ibot_v1")
    b, epoch = len(golden["teacher_cls"]) // config["ngcrops"], config["epoch"]
    center, patch_center = jnp.asarray(golden["center"][0]), jnp.asarray(golden["center2"][0, 0])
    teacher, patch_teacher = _example_first(golden["teacher_cls"], b), jnp.asarray(golden["teacher_patch"])
    local = _example_first(golden["student_local_cls"], b)
    masked = jnp.asarray(golden["mask"]).reshape(len(patch_teacher), -1)  # (view · b) n

    def terms(student, local, patch_student):
        targets = centered_softmax(teacher, center, float(golden["teacher_temp_schedule"][epoch]))
        class_loss = dino_loss(jnp.concatenate([student, local], axis=1), targets, 0.1)
        patch_targets = centered_softmax(patch_teacher, patch_center, float(golden["teacher_temp2_schedule"][epoch]))
        weight = mask_weights(masked)
        patch_loss = masked_patch_cross_entropy(patch_student, patch_targets, weight, 0.1, len(weight))
        return class_loss + patch_loss, (class_loss, patch_loss)

    student = _example_first(golden["student_cls"], b)
    (loss, (class_loss, patch_loss)), grads = jax.value_and_grad(terms, argnums=(0, 1, 2), has_aux=True)(
        student, local, jnp.asarray(golden["student_patch"])
    )
    _assert_close(class_loss, golden["loss_cls"])
    _assert_close(patch_loss, golden["loss_patch"])
    _assert_close(loss, golden["loss"])
    _assert_close(_crop_first(grads[0]), golden["grad_student_cls"])
    _assert_close(_crop_first(grads[1]), golden["grad_student_local_cls"])
    _assert_close(grads[2], golden["grad_student_patch"])
    _assert_close(update_center(center, jnp.mean(teacher, axis=(0, 1)), 0.9), golden["new_center"][0])
    _assert_close(update_center(patch_center, jnp.mean(patch_teacher, axis=(0, 1)), 0.9), golden["new_center2"][0, 0])


def test_dinov2_patches_are_the_same_dense_and_gathered(golden_directory):
    golden, config = _golden(golden_directory, "ibot_patch_v2")
    masked, center = jnp.asarray(golden["mask"]), jnp.asarray(golden["center"][0, 0])
    num_images = len(masked)
    dense = centered_softmax(jnp.asarray(golden["teacher"]), center, 0.07)
    _assert_close(dense, golden["teacher_probs"])
    loss, grad = jax.value_and_grad(masked_patch_cross_entropy)(
        jnp.asarray(golden["student"]), dense, mask_weights(masked), 0.1, num_images
    )
    _assert_close(loss, golden["loss"])
    _assert_close(grad, golden["grad_student"])

    valid = jnp.arange(config["upper_bound"]) < config["n_masked"]
    place = jnp.nonzero(masked.reshape(-1), size=config["upper_bound"], fill_value=0)[0]
    weight = jnp.where(valid, mask_weights(masked).reshape(-1)[place], 0.0)
    _assert_close(weight[: config["n_masked"]], golden["masks_weight"])
    gathered = jnp.asarray(golden["teacher_masked"])
    centered = centered_softmax(gathered, center, 0.07)
    _assert_close(centered, golden["teacher_masked_probs"])
    balanced = sinkhorn(gathered, 0.06, valid=valid)
    _assert_close(balanced[: config["n_masked"]], golden["teacher_masked_sinkhorn"])
    for name, targets in (("masked", centered), ("masked_sinkhorn", balanced)):
        loss, grad = jax.value_and_grad(masked_patch_cross_entropy)(
            jnp.asarray(golden["student_masked"]), targets, weight, 0.1, num_images
        )
        _assert_close(loss, golden[f"loss_{name}"])
        _assert_close(grad, golden[f"grad_student_{name}"])
    moved = update_center(center, jnp.mean(jnp.asarray(golden["teacher"]), axis=(0, 1)), 0.9)
    _assert_close(moved, golden["new_center"][0, 0])


def test_swav_is_the_authors_with_gradient(golden_directory):
    golden, config = _golden(golden_directory, "swav")
    b = len(golden["output"]) // sum(config["nmb_crops"])
    scores = _example_first(golden["output"], b)
    assignments = [sinkhorn(scores[:, view], config["epsilon"]) for view in range(config["nmb_crops"][0])]
    for view, assignment in enumerate(assignments):
        _assert_close(assignment, golden[f"q_crop{view}"])
    for iterations in (1, 5):
        once = sinkhorn(scores[:, 0], config["epsilon"], iterations)
        _assert_close(once, golden[f"q_crop0_iter{iterations}"])

    def loss(scores):
        assignments = [sinkhorn(scores[:, view], config["epsilon"]) for view in range(config["nmb_crops"][0])]
        return swapped_prediction(scores, jnp.stack(assignments, axis=1), config["temperature"])

    value, grad = jax.value_and_grad(loss)(scores)
    _assert_close(value, golden["loss"])
    _assert_close(_crop_first(grad), golden["grad_output"])


def test_sinkhorn_balances_prototypes_and_gives_each_sample_one(key):
    assignments = sinkhorn(jax.random.normal(key, (12, 4), jnp.float32), 0.5, 50)
    np.testing.assert_allclose(jnp.sum(assignments, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(assignments, axis=0), 12 / 4, rtol=1e-4)


def test_sinkhorn_of_far_apart_samples_is_finite():
    """Exponentials would overflow in the first row and leave nothing in the second."""
    assignments = sinkhorn(jnp.array([[900.0, 880.0], [-900.0, -899.0]]), 0.5)
    assert np.isfinite(assignments).all()
    np.testing.assert_allclose(jnp.sum(assignments, axis=1), 1.0, rtol=1e-5)


def test_rows_that_are_no_samples_count_for_nothing(key):
    logits = jax.random.normal(key, (9, 5), jnp.float32)
    valid = jnp.array([True, False, True, True, False, True, True, False, True])
    some = sinkhorn(logits, 0.1, valid=valid)
    np.testing.assert_allclose(some[valid], sinkhorn(logits[valid], 0.1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(some[~valid], 0.0)
    np.testing.assert_array_equal(sinkhorn(logits, 0.1, valid=jnp.zeros(9, bool)), 0.0)


def test_targets_carry_no_gradient(key):
    logits = jax.random.normal(key, (4, 3), jnp.float32)
    for targets in (lambda x: sinkhorn(x, 0.1), lambda x: centered_softmax(x, jnp.zeros(3), 0.1)):
        np.testing.assert_array_equal(jax.grad(lambda x, f=targets: jnp.sum(f(x) ** 2))(logits), 0.0)
