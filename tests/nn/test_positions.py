"""The sine-cosine table against the authors' code."""

import numpy as np
import pytest

from vfm_jax.nn.positions import sincos_2d


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
