"""What is special about MLP-Mixer; its numbers are held in tests/weights/test_convnets.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import count_parameters
from vfm_jax.models.mixer import Mixer

SMALL = dict(variant="S/4", width=10, depth=2, token_dim=7, channel_dim=12)


def _image(height=8, width=12):
    return jax.random.normal(jax.random.key(1), (3, height, width, 2), jnp.float32)


@pytest.mark.parametrize(
    ("variant", "millions"), [("S/32", 19), ("S/16", 18), ("B/16", 59), ("L/16", 207), ("H/14", 431)]
)
def test_the_variants_have_the_papers_number_of_parameters(variant, millions):
    """Tolstikhin et al., 2021, Table 1, which counts no classifier."""
    image = jnp.zeros((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(Mixer(variant).init, jax.random.key(0), image)
    assert count_parameters(variables["params"]) / 1e6 == pytest.approx(millions, rel=0.04)


def test_another_number_of_patches_is_refused():
    model = Mixer(**SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0), _image())
    assert jax.eval_shape(model.apply, variables, _image()).grid == (2, 3)
    with pytest.raises(UserError, match="mixes 6 patches; these images have 2 x 4"):
        jax.eval_shape(model.apply, variables, _image(width=16))


def test_drop_path_skips_mixings_in_training_alone(random_variables):
    model, image = Mixer(**SMALL, drop_path=0.9, levels=(0, -1)), _image()
    variables = random_variables(model, image)
    keys = jax.random.split(jax.random.key(2), 3)
    evaluated = jax.jit(model.apply)(variables, image)
    trained = jax.jit(lambda keys: model.apply(variables, image, keys=keys, train=True))(keys)
    np.testing.assert_allclose(trained.levels[0], evaluated.levels[0], atol=1e-6)  # the first block is never skipped
    assert np.abs(trained.levels[1] - evaluated.levels[1]).max() > 1e-3
