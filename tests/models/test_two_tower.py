"""Two towers: how embeddings become logits, and that a recipe can write them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build
from vfm_jax.core.trees import named_leaves
from vfm_jax.models import MODELS

IMAGE = {"name": "vit", "variant": "mu/4", "projection": 6}
TEXT = {"name": "text", "variant": "mu", "vocabulary": 11, "length": 5, "projection": 6}


def two_tower(**fields):
    return build(MODELS, {"name": "two_tower", "image": IMAGE, "text": TEXT, **fields}, "config.networks.towers")


@pytest.fixture
def inputs(key):
    image = jax.random.normal(key, (3, 8, 12, 2), jnp.float32)
    return image, jax.random.randint(key, (4, 5), 0, 11)


def test_logits_are_scaled_cosines_plus_an_offset(key, inputs):
    model = two_tower(logit_bias=True, initial_scale=10.0, initial_bias=-3.0)
    pairs, variables = model.init_with_output(key, *inputs)
    image, text = pairs.image_features.pooled, pairs.text_features.pooled
    cosine = np.einsum("id,td->it", image, text)
    cosine /= np.linalg.norm(image, axis=1)[:, None] * np.linalg.norm(text, axis=1)[None]
    assert pairs.logits.shape == (3, 4)
    np.testing.assert_allclose(pairs.logits, 10 * cosine - 3, rtol=1e-5, atol=1e-5)
    for embedding in (pairs.image, pairs.text):
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(variables["params"]["logit_scale"], np.log(10), rtol=1e-6)
    assert variables["params"]["logit_scale"].shape == variables["params"]["logit_bias"].shape == ()


def test_towers_stand_under_their_names_and_without_an_offset_there_is_no_leaf(key, inputs):
    model = two_tower()
    names = named_leaves(jax.eval_shape(lambda: model.init(key, *inputs))["params"])
    assert {name.split("/")[0] for name in names} == {"image", "text", "logit_scale"}
    assert model.patch_size == 4


def test_each_tower_alone_gives_what_it_gives_in_the_pair(key, inputs):
    model = two_tower(dtype=jnp.bfloat16)
    pairs, variables = model.init_with_output(key, *inputs)
    assert pairs.logits.dtype == jnp.float32
    image = model.apply(variables, inputs[0], method="encode_image")
    text = model.apply(variables, inputs[1], method="encode_text")
    np.testing.assert_array_equal(image.pooled, pairs.image_features.pooled)
    np.testing.assert_array_equal(text.tokens, pairs.text_features.tokens)


def test_a_mistake_in_a_tower_is_said_with_its_place():
    with pytest.raises(UserError, match=r"two_tower\.text\.vocab"):
        two_tower(text={**TEXT, "vocab": 3})
