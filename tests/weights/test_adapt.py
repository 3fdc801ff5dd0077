"""A leaf is bridged to another image size, patch size, channel count or window, in words; nothing else is."""

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.nn.resample import resample_positions
from vfm_jax.weights.adapt import adapt

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def test_a_leaf_that_fits_is_the_leaf():
    value = normal(2, 3)
    found, how = adapt("encoder/norm/scale", value, (2, 3), {})
    assert found is value
    assert how == ""


@pytest.mark.parametrize("rule", ["bicubic", "bicubic_offset", "bilinear_antialias"])
def test_positions_are_resampled_by_the_rule_of_the_network(rule):
    value = normal(3, 4, 5)
    found, how = adapt("encoder/positions", value, (6, 2, 5), {"position_resampling": rule})
    np.testing.assert_array_equal(found, resample_positions(value, (6, 2), rule))
    assert how == f"3 x 4 to 6 x 2 by {rule}"


def test_channels_and_patches_are_resampled_one_after_the_other():
    value = normal(4, 4, 3, 7)
    found, how = adapt("encoder/patch_embedding/kernel", value, (6, 5, 13, 7), {}, "mean")
    assert found.shape == (6, 5, 13, 7)
    assert how == "3 to 13 channels by mean, patches of 4 x 4 to 6 x 5 by PI-resize"


@pytest.mark.parametrize("channels", ["repeat", "mean", "keep_first"])
def test_a_gray_image_gives_what_its_three_copies_gave(channels):
    """Whatever the way: one channel in place of three equal ones, or its share where only the first is kept."""
    value = normal(2, 2, 3, 5)
    found, _ = adapt("encoder/stem/kernel", value, (2, 2, 1, 5), {}, channels)
    gray = normal(2, 2)
    copies = np.einsum("hw,hwco->o", gray, value if channels != "keep_first" else value[:, :, :1])
    one = np.einsum("hw,hwco->o", gray, found)
    if channels == "repeat":  # scaled to keep the variance of the sum
        assert one.shape == copies.shape
    else:
        np.testing.assert_allclose(one, copies, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "wanted"), [(25, 49), (28, 52)])
def test_windows_of_relative_positions_are_resampled(rows, wanted):
    value = normal(rows, 2)
    found, how = adapt("encoder/block_0/attention/relative_positions/table", value, (wanted, 2), {})
    assert found.shape == (wanted, 2)
    assert how == "window 3 x 3 to 4 x 4, bilinear"


@pytest.mark.parametrize(
    ("leaf", "found", "wanted"),
    [
        ("encoder/norm/scale", (3,), (5,)),
        ("encoder/positions", (3, 3, 4), (3, 3, 5)),
        ("encoder/stage_0/conv/kernel", (3, 3, 4, 5), (5, 5, 4, 5)),
        ("head/logits/kernel", (4, 1000), (4, 10)),
    ],
)
def test_what_nothing_bridges_is_refused_by_name(leaf, found, wanted):
    with pytest.raises(UserError) as error:
        adapt(leaf, np.zeros(found, np.float32), wanted, {})
    for part in (leaf, " x ".join(map(str, found)), " x ".join(map(str, wanted))):
        assert part in str(error.value)
