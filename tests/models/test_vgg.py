"""What is special about VGG; its numbers are held in tests/weights/test_convnets.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import count_parameters
from vfm_jax.models.vgg import VGG

SMALL = dict(depths=(1, 2), widths=(4, 6), classifier_dim=5)


def _image(height=32, width=37):
    return jax.random.normal(jax.random.key(1), (2, height, width, 3), jnp.float32)


@pytest.mark.parametrize(("variant", "millions"), [("11", 133), ("13", 133), ("16", 138), ("19", 144)])
def test_the_variants_have_the_papers_number_of_parameters(variant, millions):
    variables = jax.eval_shape(VGG(variant).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float32))
    classifier = 1000 * 4097
    assert (count_parameters(variables["params"]) + classifier) / 1e6 == pytest.approx(millions, rel=0.005)  # Table 2


def test_the_sliding_classifier_is_the_mean_over_all_windows(random_variables):
    image = _image()
    slide = VGG(**SMALL, classifier="slide")
    variables = random_variables(slide, image)
    features = jax.jit(slide.apply)(variables, image)
    assert features.grid == (8, 9)
    cells = np.asarray(features.tokens).reshape(2, 8, 9, 6)
    params = jax.tree.map(np.asarray, variables["params"])
    hidden, out = params["hidden_0"], params["hidden_1"]
    outputs = []
    for i in range(2):
        for j in range(3):
            flat = cells[:, i : i + 7, j : j + 7].reshape(2, -1)
            first = np.maximum(flat @ hidden["kernel"].reshape(-1, 5) + hidden["bias"], 0)
            outputs.append(np.maximum(first @ out["kernel"] + out["bias"], 0))
    np.testing.assert_allclose(features.pooled, np.mean(outputs, axis=0), atol=1e-6)


def test_without_a_classifier_the_mean_of_the_map_is_pooled(random_variables):
    model = VGG(**SMALL | {"classifier_dim": None})
    variables = random_variables(model, _image())
    features = jax.jit(model.apply)(variables, _image())
    np.testing.assert_allclose(features.pooled, features.tokens.mean(axis=1), atol=1e-6)
    assert "hidden_0" not in variables["params"]


def test_dropout_is_drawn_by_each_examples_key_in_training_alone(random_variables):
    model, image = VGG(**SMALL | {"classifier_dim": 40}), _image()
    variables = random_variables(model, image)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)  # away from the dead side of the activation
    keys = jax.random.split(jax.random.key(2), 2)
    evaluated = jax.jit(model.apply)(variables, image, keys=keys).pooled
    np.testing.assert_array_equal(evaluated, model.apply(variables, image).pooled)
    trained = model.apply(variables, image, keys=keys, train=True).pooled
    assert 0.2 < np.mean(np.asarray(trained) == 0) < 0.8
    alone = model.apply(variables, image[1:], keys=keys[1:], train=True).pooled
    np.testing.assert_allclose(alone[0], trained[1], rtol=1e-5)


def test_batch_norm_stands_behind_every_convolution():
    variables = jax.eval_shape(VGG(**SMALL, batch_norm=True).init, jax.random.key(0), _image())
    assert set(variables["batch_stats"]) == {"stage_0_norm_0", "stage_1_norm_0", "stage_1_norm_1"}


def test_an_image_without_a_cell_is_refused():
    with pytest.raises(UserError, match="needs 4 pixels"):
        jax.eval_shape(VGG(**SMALL).init, jax.random.key(0), _image(height=3))
    with pytest.raises(UserError, match=r"pool.*slide"):
        jax.eval_shape(VGG(**SMALL, classifier="mean").init, jax.random.key(0), _image())
