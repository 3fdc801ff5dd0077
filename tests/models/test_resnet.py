"""What is special about ResNet; its numbers are held in tests/weights/test_convnets.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import count_parameters
from vfm_jax.models.resnet import ResNet

SMALL = dict(block="bottleneck", depths=(1, 2), widths=(8, 12), stem_width=6)


def _image(height=37, width=30, channels=4):
    return jax.random.normal(jax.random.key(1), (3, height, width, channels), jnp.float32)


@pytest.mark.parametrize(
    ("fields", "millions"),
    [  # without the classifier of a thousand classes
        (dict(variant="18"), 11.69 - 0.513),
        (dict(variant="50"), 25.56 - 2.049),
        (dict(variant="152"), 60.19 - 2.049),
        (dict(variant="50", width=128), 94),  # Chen et al., 2020, Table 6: 2x
        (dict(variant="50", width=256), 375),  # 4x
        (dict(variant="50", bottleneck_width=2.0), 68.9 - 2.049),  # Zagoruyko and Komodakis, 2016, Table 8
    ],
)
def test_the_variants_have_the_papers_number_of_parameters(fields, millions):
    image = jnp.zeros((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(ResNet(**fields).init, jax.random.key(0), image)
    assert count_parameters(variables["params"]) / 1e6 == pytest.approx(millions, rel=0.005)


def test_training_moves_the_running_averages_by_torchs_rule_and_evaluation_uses_them(random_variables):
    model, image = ResNet(**SMALL, norm_momentum=0.8), _image()
    variables = random_variables(model, image)
    start = variables["batch_stats"]["stem_norm"]["norm"]
    train = jax.jit(lambda variables: model.apply(variables, image, train=True, mutable=["batch_stats"]))
    trained, moved = train(variables)
    after = moved["batch_stats"]["stem_norm"]["norm"]
    stem = jax.lax.conv_general_dilated(
        image, variables["params"]["stem"]["kernel"], (2, 2), [(3, 3)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    values = np.asarray(stem, np.float64).reshape(-1, 6)
    np.testing.assert_allclose(after["mean"], 0.8 * start["mean"] + 0.2 * values.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(after["var"], 0.8 * start["var"] + 0.2 * values.var(axis=0, ddof=1), rtol=1e-4)
    evaluated = jax.jit(model.apply)({**variables, **moved}, image)
    assert np.abs(evaluated.pooled - trained.pooled).max() > 1e-3


def test_a_block_whose_last_norm_is_zero_is_its_shortcut(random_variables):
    model, image = ResNet(**SMALL), _image()
    variables = random_variables(model, image)
    last = variables["params"]["stage_1"]["block_1"]["norm3"]["norm"]
    last |= {name: jnp.zeros_like(leaf) for name, leaf in last.items()}
    features = jax.jit(model.apply)(variables, image)
    shorter = jax.jit(ResNet(**SMALL | {"depths": (1, 1)}).apply)(variables, image)
    np.testing.assert_allclose(features.tokens, shorter.tokens, atol=1e-6)


@pytest.mark.parametrize(("zero_init", "sums"), [(True, 0.0), (False, 8.0)])
def test_the_last_norm_of_a_block_starts_at_zero_if_asked(zero_init, sums):
    model = ResNet(block="basic", depths=(1,), widths=(8,), stem_width=8, zero_init=zero_init)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.float32))["params"]["stage_0"][
        "block_0"
    ]
    assert (params["norm1"]["norm"]["scale"].sum(), params["norm2"]["norm"]["scale"].sum()) == (8.0, sums)


def test_the_cifar_stem_keeps_every_pixel():
    model = ResNet(**SMALL, stem="cifar", levels=("stem", 0, 1))
    features = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), _image())[0])
    assert features.level_grids == ((37, 30), (37, 30), (19, 15))
    assert model.patch_size == 2
    assert ResNet(**SMALL).patch_size == 8


def test_an_unknown_stem_and_unequal_stages_are_refused():
    with pytest.raises(UserError, match=r"imagenet.*cifar"):
        jax.eval_shape(ResNet(stem="deep").init, jax.random.key(0), _image())
    with pytest.raises(UserError, match="a depth and a width"):
        _ = ResNet(depths=(1, 2), widths=(8,)).sizes
