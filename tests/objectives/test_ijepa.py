"""I-JEPA: the student sees the context alone, the teacher the whole; the loss and the masks are held elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.case import batch_of, tiny_vit
from tests.objectives.cases_ijepa import CASES
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.models import MODELS
from vfm_jax.nn.multi_block import multi_block_masking
from vfm_jax.nn.patches import patchify, unpatchify
from vfm_jax.objectives.ijepa import ijepa

GRID, KEY = (4, 6), jax.random.key(7)


@pytest.fixture(scope="module")
def objective():
    return CASES["ijepa"].make()


@pytest.fixture(scope="module")
def batch():
    return batch_of(CASES["ijepa"])


@pytest.fixture(scope="module")
def variables(objective, batch):
    made = jax.jit(objective.init)(jax.random.key(0), batch)
    other = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(7 * leaf), made.extra["teacher"])  # not the student's
    return made._replace(extra={"teacher": other})


@pytest.fixture(scope="module")
def forward(objective, variables):
    return jax.jit(lambda image, batch: objective.forward(*variables, batch | {"image": image}, KEY, 0)[0])


@pytest.fixture(scope="module")
def blocks(batch):
    keys = example_keys(stream(KEY, "block_place"), batch["epoch"], batch["index"])
    return multi_block_masking(GRID, min_context=3)(stream(KEY, "block_size"), keys)


def test_predictions_follow_from_the_context_and_targets_from_the_teacher(blocks, batch, forward, variables):
    index, valid = np.asarray(blocks.context), np.asarray(blocks.context_valid)
    seen = np.zeros((len(index), GRID[0] * GRID[1]), bool)
    for row, own, real in zip(seen, index, valid, strict=True):
        row[own[real]] = True
    assert seen.sum(axis=1).min() > 0 and not seen.all(axis=1).any()
    patches = patchify(batch["image"], 2)
    changed = unpatchify(jnp.where(seen[:, :, None], patches, patches + 3), GRID, 2)
    before, after = forward(batch["image"], batch), forward(changed, batch)
    real = np.asarray(before.valid)
    np.testing.assert_array_equal(before.prediction[real], after.prediction[real])
    assert np.abs(before.target - after.target).max() > 0.1

    whole = tiny_vit(variant="mu/2", class_token=False).apply(
        {"params": variables.extra["teacher"]["encoder"]}, batch["image"]
    )
    tokens = np.asarray(whole.patch_tokens, np.float64)
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
    for number, (places, own) in enumerate(zip(blocks.targets, blocks.targets_valid, strict=True)):
        width = places.shape[1]
        for example in range(len(index)):
            rows = before.target[example, number * width : (number + 1) * width][own[example]]
            np.testing.assert_allclose(rows, tokens[example, places[example][own[example]]], rtol=1e-3, atol=1e-4)


def test_padding_changes_nothing(batch, variables, blocks):
    """A context and targets padded with anything give what the bare ones give."""
    encoder = tiny_vit(variant="mu/2", class_token=False)
    predictor = MODELS["jepa_predictor"](width=16, depth=1, heads=2)
    image = batch["image"][:1]
    context, targets = jnp.array([[0, 5, 9, 14]]), jnp.array([[[1, 2, 7]], [[3, 4, 10]]])

    def predict(context, targets, *valid):
        keep = dict(valid=valid[0][0]) if valid else {}
        seen = encoder.apply({"params": variables.params["encoder"]}, image, keep=context, **keep)
        told = (seen.patch_tokens, context[None], targets, GRID, *valid)
        return seen.pooled, predictor.apply({"params": variables.params["predictor"]}, *told)

    pooled, bare = predict(context, targets)
    padded = jnp.pad(context, ((0, 0), (0, 2)), constant_values=20), jnp.pad(targets, ((0, 0), (0, 0), (0, 1)))
    valid = jnp.array([[[True] * 4 + [False] * 2]]), jnp.broadcast_to(jnp.array([True] * 3 + [False]), (2, 1, 4))
    pooled_of_padded, made = predict(*padded, *valid)
    np.testing.assert_allclose(made[:, :3], bare, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled_of_padded, pooled, rtol=1e-4, atol=1e-5)


def test_features_are_the_teachers(objective, variables, batch):
    encoder = tiny_vit(variant="mu/2", class_token=False)
    expected = encoder.apply({"params": variables.extra["teacher"]["encoder"]}, batch["image"])
    found = objective.predict["features"](variables, batch)
    np.testing.assert_allclose(found.pooled, expected.pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(objective.embedding(objective.forward(*variables, batch, KEY, 0)[0])[:, 0],
                               expected.pooled, rtol=1e-4, atol=1e-5)  # fmt: skip


def test_ranges_may_be_lists_as_an_override_gives_them():
    settings = dict(target_scale=[0.1, 0.3], context_scale=[0.9, 1.0], target_aspect_ratio=[1.0, 1.0], min_context=3)
    objective = ijepa(tiny_vit(variant="mu/2", class_token=False), MODELS["jepa_predictor"](8, 1, 2), **settings)
    jax.eval_shape(objective.init, jax.random.key(0), batch_of(CASES["ijepa"]))
