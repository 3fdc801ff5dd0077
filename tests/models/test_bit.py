"""What is special about BiT; its numbers are held in tests/weights/test_convnets.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import count_parameters
from vfm_jax.models.bit import BiT

SMALL = dict(depths=(1, 1, 1), widths=(32, 64, 32), stem_width=16, groups=8)


def _image(height=37, width=45):
    return jax.random.normal(jax.random.key(1), (2, height, width, 3), jnp.float32)


@pytest.mark.parametrize(
    ("variant", "millions"),  # without a classifier; the authors' table counts one of 21843 classes
    [("R50x1", 23.5), ("R101x3", 381.8), ("R152x4", 928.3)],
)
def test_the_variants_have_the_papers_number_of_parameters(variant, millions):
    variables = jax.eval_shape(BiT(variant).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float32))
    assert count_parameters(variables["params"]) / 1e6 == pytest.approx(millions, rel=0.005)


def test_the_scale_of_a_kernel_does_not_matter(random_variables):
    model, image = BiT(depths=(1,), widths=(32,), stem_width=16, groups=8), _image()
    variables = random_variables(model, image)
    features = jax.jit(model.apply)(variables, image)
    params = variables["params"]
    scaled = {**params, "stem": {"kernel": 5 * params["stem"]["kernel"] + 1}}
    np.testing.assert_allclose(features.pooled, jax.jit(model.apply)({"params": scaled}, image).pooled, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "patch_size", "grids"),
    [
        ({}, 16, ((10, 12), (10, 12), (5, 6), (3, 3))),
        ({"output_stride": 8}, 8, ((10, 12), (10, 12), (5, 6), (5, 6))),
        ({"stem": "cifar"}, 4, ((37, 45), (37, 45), (19, 23), (10, 12))),
        ({"padding": "same", "stem_pool": "none"}, 16, ((9, 11), (9, 11), (5, 6), (3, 3))),
        ({"preactivation": False, "stem_pool": "zeros_same"}, 16, ((11, 13), (11, 13), (6, 7), (3, 4))),
    ],
)
def test_strides_stems_and_paddings_make_the_maps(fields, patch_size, grids):
    model = BiT(**SMALL, **fields, levels=("stem", 0, 1, 2))
    features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), _image())[0])
    assert (model.patch_size, features.level_grids) == (patch_size, grids)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"groups": 5}, "5 groups"),
        ({"variant": "R50"}, "R50x1"),
        ({"padding": "valid"}, "None or"),
        ({"stem": "d"}, "cifar"),
    ],
)
def test_what_cannot_be_built_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        jax.eval_shape(BiT(**SMALL | fields).init, jax.random.key(0), _image())
