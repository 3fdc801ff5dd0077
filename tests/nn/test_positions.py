"""Sine-cosine tables and rotary angles against the authors' code; relative positions by what they mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.nn.positions import (
    RelativeIndex,
    RelativePositions,
    augment_coordinates,
    places,
    relative_rows,
    rope_coordinates,
    rope_periods,
    rotate,
    rotation,
    sincos_2d,
    sincos_2d_bigvision,
    sincos_at,
)


@pytest.mark.parametrize(("width", "side"), [(32, 4), (48, 7), (768, 14)])
def test_the_table_equals_the_authors_without_their_class_token(golden_directory, width, side):
    with np.load(golden_directory / "components" / "sincos_mae.npz") as golden:
        expected = golden[f"pe_{width}_{side}"][1:]  # the first row is the class token's zeros
    table = sincos_2d((side, side), width)
    assert table.shape == (side**2, width) and table.dtype == np.float32
    np.testing.assert_allclose(table[: len(expected)], expected, rtol=0, atol=1e-6)


def test_an_oblong_grid_has_the_rows_and_columns_of_square_ones():
    oblong = sincos_2d((2, 5), 8).reshape(2, 5, 8)
    square = sincos_2d((5, 5), 8).reshape(5, 5, 8)
    np.testing.assert_array_equal(oblong, square[:2])


def test_a_width_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(ValueError, match="multiple of 4; found 30"):
        sincos_2d((2, 3), 30)


@pytest.mark.parametrize(("width", "grid"), [(32, (4, 4)), (16, (3, 5))])
def test_big_visions_table_reaches_the_last_frequency(golden_directory, width, grid):
    with np.load(golden_directory / "components" / "sincos_bigvision.npz") as golden:
        expected = golden[f"pe_{grid[0]}x{grid[1]}_{width}"][0]
    np.testing.assert_allclose(sincos_2d_bigvision(grid, width), expected, rtol=0, atol=1e-5)


def test_the_table_at_places_known_at_run_time_is_the_same():
    place = places((3, 5))
    traced = jax.jit(lambda place: sincos_at(place, 16, 4.0))(jnp.asarray(place, jnp.float32))
    np.testing.assert_allclose(traced, sincos_2d((3, 5), 16), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- rotary

VARIANTS = {
    "default": (dict(), "separate"),
    "max": (dict(), "max"),
    "min": (dict(), "min"),
    "periods": (dict(base=None, min_period=0.5, max_period=20.0), "separate"),
}


def _angles(grid, head_dim, variant):
    periods, normalize = VARIANTS[variant]
    coordinates = rope_coordinates(places(grid)[None], np.array(grid, np.float64)[None], normalize)
    return rotation(coordinates, rope_periods(head_dim, **periods))


@pytest.mark.parametrize("variant", VARIANTS)
def test_angles_equal_dinov3(golden_directory, variant):
    with np.load(golden_directory / "components" / "rope_dinov3.npz") as golden:
        sin, cos, periods = (golden[f"{name}_{variant}"] for name in ("sin", "cos", "periods"))
    np.testing.assert_allclose(rope_periods(32, **VARIANTS[variant][0]), periods, rtol=1e-4, atol=1e-5)
    angles = _angles((5, 3), 32, variant)
    np.testing.assert_allclose(angles.sin[0], sin, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(angles.cos[0], cos, rtol=1e-4, atol=1e-5)


def test_angles_of_places_known_at_run_time_are_the_same():
    for variant, (periods, normalize) in VARIANTS.items():

        def traced(place, shape, periods=periods, normalize=normalize):
            return rotation(rope_coordinates(place, shape, normalize), rope_periods(16, **periods))

        place, shape = (jnp.asarray(x, jnp.float32)[None] for x in (places((2, 5)), (2, 5)))
        for one, other in zip(jax.jit(traced)(place, shape), _angles((2, 5), 16, variant), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_queries_and_keys_are_turned_as_dinov3_turns_them(golden_directory):
    with np.load(golden_directory / "components" / "rope_dinov3.npz") as golden:
        golden = dict(golden)
    angles = _angles((5, 3), 32, "default")
    for name in ("q", "k"):
        x = jnp.asarray(rearrange(golden[name], "b heads n d -> b n heads d"))
        expected = rearrange(golden[f"{name}_rot"], "b heads n d -> b n heads d")
        turned = rotate(x, angles)
        np.testing.assert_allclose(turned, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(turned[:, :5], x[:, :5])  # class and storage tokens


def test_turned_queries_and_keys_know_their_distance_alone():
    """<R_i q, R_j k> is the same for all pairs at one distance (Su et al., 2021, Eq. 16)."""
    angles = _angles((4, 5), 8, "default")
    q, k = (jnp.broadcast_to(jax.random.normal(jax.random.key(i), (8,)), (1, 20, 1, 8)) for i in (0, 1))
    products = np.einsum("nd,md->nm", rotate(q, angles)[0, :, 0], rotate(k, angles)[0, :, 0])
    np.testing.assert_allclose(products[7, 1], products[18, 12], rtol=1e-4)  # one row and one column apart
    assert abs(products[7, 1] - products[7, 2]) > 1e-3


def test_rotation_is_in_float32_under_bfloat16():
    x = jax.random.normal(jax.random.key(0), (2, 6, 3, 8), jnp.bfloat16)
    angles = _angles((2, 3), 8, "default")
    turned = rotate(x, angles)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, rotate(x.astype(jnp.float32), angles).astype(jnp.bfloat16))


def test_coordinates_are_moved_and_stretched_within_their_bounds_by_each_examples_key():
    keys = jax.random.split(jax.random.key(3), 500)
    corners = jnp.asarray([[[-1.0, -1.0], [1.0, 1.0], [1.0, -1.0]]])
    moved = np.asarray(augment_coordinates(keys, corners, shift=0.5))
    offsets = moved - np.asarray(corners)
    np.testing.assert_allclose(offsets, np.broadcast_to(offsets[:, :1], offsets.shape), atol=1e-6)
    assert 0.45 < np.abs(offsets).max() <= 0.5 and np.abs(offsets.mean(axis=(0, 1))).max() < 0.06
    for name, bound in (("jitter", 1.5), ("rescale", 3.0)):
        factors = np.asarray(augment_coordinates(keys, corners, **{name: bound}))[:, 1]  # of (1, 1)
        assert (factors <= bound * 1.001).all() and (factors >= 0.999 / bound).all()
        assert factors.max() > 0.9 * bound and abs(np.log(factors).mean()) < 0.1 * np.log(bound)
        assert (factors[:, 0] == factors[:, 1]).all() == (name == "rescale")
    everything = dict(shift=0.5, jitter=1.5, rescale=3.0)
    whole = augment_coordinates(keys, corners, **everything)
    np.testing.assert_array_equal(augment_coordinates(keys[::-1][:3], corners, **everything), whole[::-1][:3])
    np.testing.assert_array_equal(augment_coordinates(keys[:2], corners), np.repeat(corners, 2, axis=0))


# ----------------------------------------------------------------------------------------------------------- relative


def test_pairs_at_one_distance_read_one_row_and_prefix_tokens_their_own():
    rows = relative_rows((2, 3), 2)
    assert rows.shape == (8, 8)
    patches = rows[2:, 2:]
    seen = {}
    for i, one in enumerate(places((2, 3))):
        for j, other in enumerate(places((2, 3))):
            seen.setdefault(tuple(one - other), set()).add(int(patches[i, j]))
    assert all(len(row) == 1 for row in seen.values())
    assert sorted(row for one in seen.values() for row in one) == list(range(15))
    assert (np.diag(patches) == 7).all()
    assert (rows[:2, 2:] == 15).all() and (rows[2:, :2] == 16).all() and (rows[:2, :2] == 17).all()


def _bias(table, grid):
    where = RelativeIndex(grid, jnp.asarray(relative_rows(grid, 1))[None])
    return RelativePositions(heads=2).apply({"params": {"table": jnp.asarray(table)}}, where)


def test_a_table_for_square_images_serves_others():
    table = np.zeros((28, 2), np.float32)  # 3 x 3 patches
    table[:25] = np.abs(np.arange(-2, 3)).repeat(5)[:, None]  # the distance in rows
    bias = np.asarray(_bias(table, (3, 3)))[0, 0, 1:, 1:]
    assert bias[0, 6] == bias[6, 0] == 2 and bias[0, 3] == 1 and bias[0, 2] == 0
    tall = np.asarray(_bias(table, (5, 2)))
    assert tall.shape == (1, 2, 11, 11)
    np.testing.assert_allclose(tall[0, 0, 1:, 1:], tall[0, 0, 1:, 1:].T, atol=1e-6)
    assert tall[0, 0, 1, 9] > tall[0, 0, 1, 5] > tall[0, 0, 1, 3]


def test_a_table_of_an_oblong_grid_serves_no_other():
    with pytest.raises(UserError, match="15 relative distances is of no square grid"):
        _bias(np.zeros((18, 2), np.float32), (4, 4))
