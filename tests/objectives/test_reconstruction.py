"""What is particular to methods that predict hidden pixels, or a teacher's features of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.case import batch_of, tiny_vit
from tests.objectives.cases_reconstruction import CASES
from vfm_jax.core.errors import UserError
from vfm_jax.losses.reconstruction import contextual_targets
from vfm_jax.models import MODELS
from vfm_jax.nn.patches import patchify
from vfm_jax.objectives import OBJECTIVES

PIXELS = ["simmim swin", "fcmae", "context_reconstruction"]
KEY = jax.random.key(7)


def _start(case, size=3):
    objective, batch = case.make(), batch_of(case, size)
    return objective, batch, jax.jit(objective.init)(jax.random.key(0), batch)


@pytest.mark.parametrize("name", PIXELS)
def test_the_reconstruction_shows_true_pixels_where_they_were_visible(name):
    objective, batch, variables = _start(CASES[name])
    made = jax.jit(objective.predict["reconstruction"])(variables, batch)
    assert {image.shape for image in made.values()} == {batch["image"].shape}
    visible = np.asarray(made["hidden"]) == 0
    assert 0 < visible.mean() < 1
    np.testing.assert_array_equal(np.asarray(made["reconstructed"])[visible], np.asarray(batch["image"])[visible])
    assert (np.asarray(made["reconstructed"]) != np.asarray(batch["image"]))[~visible].all()


def test_an_autoencoder_hides_nothing_and_its_whole_image_is_shown():
    objective, batch, variables = _start(CASES["context_reconstruction autoencoder"])
    made = objective.predict["reconstruction"](variables, batch)
    assert not made["hidden"].any()
    outputs, _ = objective.forward(*variables, batch, KEY, 0)
    np.testing.assert_allclose(made["reconstructed"], outputs.prediction, rtol=1e-5, atol=1e-5)
    loss, _ = objective.criterion(*variables, outputs, 0)
    np.testing.assert_allclose(loss, jnp.mean(jnp.square(outputs.prediction - batch["image"])), rtol=1e-5)


@pytest.mark.parametrize("name", [*PIXELS, "data2vec2"])
def test_what_is_hidden_follows_the_example_and_the_step_not_the_place_in_the_batch(name):
    objective, batch, variables = _start(CASES[name])

    @jax.jit
    def masks(batch, key):
        outputs, _ = objective.forward(*variables, batch, key, 0)
        return outputs.hidden if "context" in name else outputs.masked

    whole = masks(batch, KEY)
    np.testing.assert_array_equal(whole, masks(jax.tree.map(lambda a: a[::-1], batch), KEY)[::-1])
    assert (whole != masks(batch, jax.random.key(8))).any()
    assert (whole != whole[:1]).any()


def test_the_rectangle_is_zero_in_what_the_context_encoder_sees():
    objective, batch, variables = _start(CASES["context_reconstruction"])

    def total(image):
        outputs, _ = objective.forward(*variables, batch | {"image": image}, KEY, 0)
        return outputs.prediction.sum(), outputs.hidden

    grad, hidden = jax.grad(total, has_aux=True)(batch["image"])
    assert hidden.any() and not np.abs(grad)[hidden].any() and np.abs(grad)[~hidden].any()


def _data2vec2(**fields):
    encoder = tiny_vit(depth=3, positions="sincos2d", norm_input="tokens", norm_order="post", final_norm=False)
    decoder = MODELS["conv_decoder"](width=16, depth=1, groups=4)
    settings = dict(num_masks=1, mask_ratio=0.5, block_size=2, average_top_k=2) | fields
    return encoder, OBJECTIVES["data2vec2"](encoder, decoder, **settings)


def test_the_student_of_data2vec2_sees_visible_patches_alone_and_the_teacher_all():
    case, (encoder, objective) = CASES["data2vec2"], _data2vec2()
    batch = batch_of(case, 3)
    variables = objective.init(jax.random.key(0), batch)

    def total(image):
        outputs, _ = objective.forward(*variables, batch | {"image": image}, KEY, 0)
        return outputs.prediction.sum() + outputs.summary[..., 0].sum(), outputs

    grad, outputs = jax.grad(total, has_aux=True)(batch["image"])
    touched = np.abs(patchify(grad, 4)).sum(axis=2) > 0
    np.testing.assert_array_equal(touched, ~np.asarray(outputs.masked[:, 0]))

    whole = encoder.clone(levels=(1, 2), levels_of="mlp")
    levels = whole.apply({"params": variables.extra["target"]["encoder"]}, batch["image"]).levels
    np.testing.assert_allclose(outputs.target, contextual_targets([level[:, 1:] for level in levels]), atol=1e-5)


def test_the_loss_of_data2vec2_is_of_hidden_patches_and_the_class_token_of_a_sum_over_a_device():
    batch = batch_of(CASES["data2vec2"], 3)
    _, objective = _data2vec2(num_masks=4, class_weight=0.1, class_images=5)
    variables = objective.init(jax.random.key(0), batch)
    outputs, _ = objective.forward(*variables, batch, KEY, 0)
    assert (outputs.masked[:, 0] != outputs.masked[:, 1]).any()
    _, (_, measured) = objective.criterion(*variables, outputs, 0)
    target = np.asarray(outputs.target)
    errors = np.square(np.asarray(outputs.prediction) - target[:, None]).sum(-1) / np.sqrt(16)
    np.testing.assert_allclose(measured["loss/patches"], errors[np.asarray(outputs.masked)].mean(), rtol=1e-5)
    summary = np.square(np.asarray(outputs.summary) - target.mean(1)[:, None]).sum(-1) / np.sqrt(16)
    np.testing.assert_allclose(measured["loss/class"], 0.1 * 5 * 4 * summary.mean(), rtol=1e-5)

    _, without = _data2vec2(num_masks=4, class_weight=0.0)
    loss, (_, alone) = without.criterion(*variables, outputs, 0)
    np.testing.assert_allclose(loss, measured["loss/patches"], rtol=1e-6)
    assert "loss/class" not in alone


@pytest.mark.parametrize(
    ("method", "encoder", "fields", "message"),
    [
        ("simmim", dict(name="vgg", depths=(1,), widths=(4,)), {}, "found VGG"),
        ("simmim", dict(name="vit", variant="mu/16"), dict(mask_patch_size=24), "squares of 24 pixels"),
        ("fcmae", dict(name="vgg", depths=(1,), widths=(4,)), {}, "a ConvNeXt"),
        ("data2vec2", dict(name="vit", variant="mu/4", class_token=False, pooling="mean"), {}, "class token"),
        ("context_reconstruction", dict(name="vgg"), dict(loss_on="pixels"), "hidden or image; found 'pixels'"),
        ("context_reconstruction", dict(name="vgg"), dict(hidden_area=(0.5, 0.2)), "found \\(0.5, 0.2\\)"),
    ],
)
def test_networks_and_settings_that_cannot_be_are_refused(method, encoder, fields, message):
    encoder = MODELS[encoder["name"]](**{k: v for k, v in encoder.items() if k != "name"})
    with pytest.raises(UserError, match=message):
        OBJECTIVES[method](encoder, MODELS["pixel_head"](), **fields)
