"""AIM, iGPT and NEPA: what is predicted follows from what stands before it, and from nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.case import batch_of, tiny_vit
from tests.objectives.cases_autoregression import CASES
from vfm_jax.core.errors import UserError
from vfm_jax.losses.reconstruction import standardize_patches
from vfm_jax.models import MODELS
from vfm_jax.nn.patches import color_classes, colors_of_classes, patchify, unpatchify
from vfm_jax.objectives import OBJECTIVES

GRID, PATCHES = (2, 3), 6
FIRST = {"aim": 1, "igpt": 0, "nepa": 0}  # the patch that the first prediction is of


@pytest.fixture(scope="module")
def made():
    """name -> objective, variables, batch, and the jitted outputs of any images."""

    def build(name):
        objective, batch = CASES[name].make(), batch_of(CASES[name])
        variables = jax.jit(objective.init)(jax.random.key(0), batch)

        def outputs(image):
            return objective.forward(*variables, batch | {"image": image}, jax.random.key(1), 0)[0]

        return objective, variables, batch, jax.jit(outputs)

    return {name: build(name) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_prediction_does_not_see_what_it_predicts_nor_what_follows(made, name):
    _, _, batch, outputs = made[name]
    before = outputs(batch["image"])
    patches = patchify(batch["image"], 4)
    reached = 0
    for place in range(FIRST[name], PATCHES):
        changed = unpatchify(patches.at[:, place:].multiply(-1.7), GRID, 4)
        after = outputs(changed)
        row = place - FIRST[name]
        # AIM's prefix is seen by its own patches, which are not scored.
        scored = np.asarray(before.scored)[:, row] if name == "aim" else np.ones(len(patches), bool)
        one, other = (np.asarray(jax.tree.leaves(found)[0])[scored, row] for found in (before, after))
        np.testing.assert_array_equal(one, other)
        later = np.abs(np.asarray(jax.tree.leaves(before)[0]) - jax.tree.leaves(after)[0])[:, row + 1 :]
        reached += later.size > 0 and later.max() > 1e-3
    assert reached >= PATCHES - 2 - FIRST[name]  # and is seen by what comes after it


def test_aim_scores_what_lies_behind_a_prefix_drawn_for_each_image(made):
    objective, variables, batch, outputs = made["aim"]
    found = outputs(batch["image"])
    scored = np.asarray(found.scored)
    assert (np.diff(scored.astype(int), axis=1) >= 0).all() and scored[:, -1].all()
    np.testing.assert_array_equal(found.target, patchify(batch["image"], 4)[:, 1:])
    loss, _ = objective.criterion(*variables, found, 0)
    error = np.square(found.prediction - standardize_patches(found.target)).mean(-1)
    np.testing.assert_allclose(loss, np.mean([row[own].mean() for row, own in zip(error, scored, strict=True)]), 1e-5)

    many = {"image": jnp.zeros((600, 8, 12, 3)), "index": jnp.arange(600), "epoch": jnp.zeros(600, jnp.int32)}
    scored = objective.forward(*variables, many, jax.random.key(1), 0)[0].scored
    lengths = np.bincount(PATCHES - np.asarray(scored).sum(axis=1), minlength=PATCHES + 1)
    assert lengths[0] == lengths[PATCHES] == 0 and lengths[1:PATCHES].min() > 600 / 5 - 5 * np.sqrt(600 / 5)


def test_aim_sees_whole_images_once_it_is_trained(made):
    objective, variables, batch, _ = made["aim"]
    features = jax.jit(objective.predict["features"])
    other = batch["image"].at[:, 4:, 8:].add(1.0)  # the last patch
    first, second = (features(variables, batch | {"image": image}).tokens for image in (batch["image"], other))
    assert np.abs(first[:, 0] - second[:, 0]).max() > 1e-4


def test_pictures_of_aim_show_the_prefix_and_give_patches_their_brightness(made):
    objective, variables, batch, _ = made["aim"]
    found = jax.jit(objective.predict["reconstruction"])(variables, batch)
    shown = np.asarray(found["hidden"]) == 0
    assert shown.mean() == 0.5 and shown[:, :4].all()
    np.testing.assert_array_equal(np.asarray(found["reconstructed"])[shown], np.asarray(batch["image"])[shown])
    assert {image.shape for image in found.values()} == {batch["image"].shape}


def test_igpt_without_knowledge_pays_the_logarithm_of_the_colours_and_learns_classes(made):
    _, _, batch, _ = made["igpt"]
    blank = OBJECTIVES["igpt"](
        tiny_vit(causal=True, color_levels=8), MODELS["token_decoder"](depth=0, positions="none", init_std=0.0)
    )
    variables = jax.jit(blank.init)(jax.random.key(0), batch)
    outputs = blank.forward(*variables, batch, jax.random.key(1), 0)[0]
    assert outputs.logits.shape == (len(batch["image"]), PATCHES, 512)
    np.testing.assert_allclose(blank.criterion(*variables, outputs, 0)[0], np.log(512), rtol=1e-5)
    np.testing.assert_array_equal(outputs.classes, color_classes(patchify(batch["image"], 4), 16, 8))


def test_igpts_features_and_pictures(made):
    objective, variables, batch, outputs = made["igpt"]
    of_level = OBJECTIVES["igpt"](
        tiny_vit(causal=True, color_levels=2, norm="rms_norm", activation="quick_gelu", levels=(0,)),
        MODELS["token_decoder"](depth=0, positions="none", init_std=0.02),
    )
    found = of_level.predict["features"](variables, batch)
    np.testing.assert_allclose(found.pooled, np.mean(found.levels[0], axis=1), rtol=1e-5, atol=1e-6)
    pictures = objective.predict["reconstruction"](variables, batch)
    likeliest = jnp.argmax(outputs(batch["image"]).logits, axis=-1)
    small = np.asarray(pictures["reconstructed"])[:, ::4, ::4].reshape(-1, PATCHES, 3)
    np.testing.assert_allclose(small, colors_of_classes(likeliest, 2, 3))


def test_nepas_target_is_the_embedding_that_the_encoder_reads(made):
    objective, variables, batch, outputs = made["nepa"]
    found = outputs(batch["image"])
    kernel, bias = (variables.params["encoder"]["patch_embedding"][leaf] for leaf in ("kernel", "bias"))
    embedded = patchify(batch["image"], 4) @ kernel.reshape(-1, 16) + bias[None, None]
    np.testing.assert_allclose(found.target, embedded, rtol=1e-4, atol=1e-5)
    assert objective.criterion(*variables, found._replace(prediction=2 * embedded), 0)[0] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("aim", {}, "class_token=False"),
        ("igpt", dict(color_levels=8), "causal=True"),
        ("igpt", dict(causal=True, color_levels=8, class_token=False), "class_token=True"),
        ("igpt", dict(causal=True), "color_levels=8"),
        ("nepa", {}, "causal=True"),
    ],
)
def test_an_encoder_that_would_see_the_answer_is_refused_with_a_way_out(name, fields, says):
    heads = [] if name == "nepa" else [MODELS["token_decoder"]()]
    with pytest.raises(UserError, match=f"config.networks.encoder.{says}"):
        OBJECTIVES[name](tiny_vit(**fields), *heads)
