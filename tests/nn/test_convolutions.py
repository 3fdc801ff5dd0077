"""Convolutions and pools: every form of a convolution is XLA's plain one; padding by either convention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.backend import compiling_for
from vfm_jax.nn.convolutions import Conv, adaptive_average_pool, convolve, max_pool, pad_widths, standardize_weights


def _arrays(side, inputs, outputs, height=9, width=7, groups=1):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, height, width, inputs))
    kernel = generator.standard_normal((side, side, inputs // groups, outputs))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def _plain(x, kernel, stride, pads, groups=1):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=dimensions, feature_group_count=groups
    )


@pytest.mark.parametrize(
    ("side", "stride", "groups"), [(4, 4, 1), (2, 2, 1), (1, 1, 1), (1, 2, 1), (3, 2, 1), (3, 1, 2)]
)
def test_products_over_windows_are_the_convolution(side, stride, groups):
    x, kernel = _arrays(side, 6, 4, groups=groups)
    pads = ((0, 0), (0, 0))
    expected = _plain(x, kernel, stride, pads, groups)
    np.testing.assert_allclose(convolve(x, kernel, stride, pads, groups=groups), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("side", "outputs", "pads", "stride", "dilation", "groups"),
    [
        (7, 6, ((3, 3), (3, 3)), 1, 1, 6),  # depthwise
        (3, 6, ((0, 2), (1, 0)), 1, 1, 6),
        (3, 6, ((1, 1), (1, 1)), 2, 1, 6),
        (3, 4, ((1, 1), (0, 2)), 1, 1, 2),  # grouped
        (3, 12, ((1, 1), (1, 1)), 2, 1, 3),
        (3, 6, ((2, 2), (2, 2)), 1, 2, 2),
        (1, 6, ((0, 0), (0, 0)), 2, 1, 3),
        (4, 12, ((0, 0), (0, 0)), 4, 1, 6),
    ],
)
def test_the_grouped_forms_of_the_cpu_have_the_values_and_gradients_of_the_other(
    side, outputs, pads, stride, dilation, groups
):
    x, kernel = _arrays(side, 6, outputs, groups=groups)

    def run(x, kernel):
        y = convolve(x, kernel, stride, pads, dilation, groups)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(x, kernel)
    with compiling_for("tpu"):
        (_, expected), others = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)(x, kernel)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for ours, theirs in zip(gradients, others, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_bfloat16_depthwise_gradient_is_summed_in_float32():
    x, kernel = jnp.ones((1, 40, 40, 2), jnp.bfloat16), jnp.ones((1, 1, 1, 2), jnp.bfloat16)
    with compiling_for("cpu"):
        slope = jax.grad(lambda k: jnp.sum(convolve(x, k, 1, ((0, 0), (0, 0)), groups=2).astype(jnp.float32)))(kernel)
    np.testing.assert_array_equal(slope.astype(jnp.float32), np.full((1, 1, 1, 2), 1600.0))


@pytest.mark.parametrize(
    ("padding", "length", "kernel", "stride", "expected"),
    [
        (None, 9, 7, 2, (3, 3)),
        (0, 9, 7, 2, (0, 0)),
        (1, 9, 3, 2, (1, 1)),
        ("same", 8, 3, 2, (0, 1)),  # TensorFlow puts the odd one last
        ("same", 9, 3, 2, (1, 1)),
        ("same", 8, 7, 2, (2, 3)),
        ("same", 9, 1, 2, (0, 0)),
    ],
)
def test_padding_by_either_convention(padding, length, kernel, stride, expected):
    assert pad_widths(padding, length, kernel, stride) == expected


def test_same_padding_is_xlas(key):
    x, kernel = _arrays(3, 4, 5, height=8, width=7)
    conv = Conv(5, 3, 2, "same", use_bias=False)
    expected = _plain(x, kernel, 2, "SAME")
    np.testing.assert_allclose(conv.apply({"params": {"kernel": kernel}}, x), expected, atol=1e-4)


def test_a_convolution_has_a_bias_and_dilates(key):
    x, _ = _arrays(3, 4, 5)
    y, variables = Conv(5, 3, dilation=2).init_with_output(key, x)
    assert y.shape == (2, 9, 7, 5)
    assert {name: leaf.shape for name, leaf in variables["params"].items()} == {"kernel": (3, 3, 4, 5), "bias": (5,)}


def test_standardised_kernels_have_mean_zero_and_variance_one_for_each_output():
    kernel = np.asarray(_arrays(3, 4, 5)[1]) * np.linspace(1, 9, 5, dtype=np.float32) + 3
    standardized = np.asarray(standardize_weights(jnp.asarray(kernel), 1e-10), np.float64)
    np.testing.assert_allclose(standardized.mean(axis=(0, 1, 2)), np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(standardized.var(axis=(0, 1, 2)), np.ones(5), rtol=1e-5)


def test_the_padding_of_a_max_pool_is_never_the_largest_unless_it_is_zero():
    x = -jnp.ones((1, 4, 4, 1), jnp.float32)
    np.testing.assert_array_equal(max_pool(x, 3, 2, 1), -np.ones((1, 2, 2, 1)))
    zeros = max_pool(x, 3, 2, 1, 0.0)[0, :, :, 0]
    np.testing.assert_array_equal(zeros, [[0, 0], [0, -1]])


def test_an_adaptive_pool_repeats_a_smaller_map_as_torch_does(golden_directory):
    golden = np.load(golden_directory / "models" / "vgg16" / "io.npz")
    pooled = adaptive_average_pool(jnp.asarray(golden["features_30"].transpose(0, 2, 3, 1)), (7, 7))
    np.testing.assert_allclose(pooled.transpose(0, 3, 1, 2), golden["avgpool"], atol=1e-6)


def test_an_adaptive_pool_takes_means_of_windows_that_may_overlap():
    x = jnp.arange(5, dtype=jnp.float32).reshape(1, 5, 1, 1)
    np.testing.assert_allclose(adaptive_average_pool(x, (3, 1))[0, :, 0, 0], [0.5, 2.0, 3.5])
