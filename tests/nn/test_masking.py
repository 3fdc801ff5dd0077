"""Masks part the patches; gathered tokens can be put back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.nn.masking import gather_tokens, mask_by_noise, masking_noise, scatter_tokens


@pytest.mark.parametrize(("ratio", "kept"), [(0.05, 18), (0.5, 9), (0.6, 7), (0.75, 4), (0.94, 1)])
def test_a_mask_parts_the_patches_into_kept_and_hidden(key, ratio, kept):
    num_patches = 19 if ratio < 0.9 else 17
    keep, masked = mask_by_noise(masking_noise(jax.random.split(key, 3), num_patches), ratio)
    assert keep.shape == (3, kept)
    for row, hidden in zip(np.asarray(keep), np.asarray(masked), strict=True):
        assert sorted([*row, *np.flatnonzero(hidden)]) == list(range(num_patches))


def test_the_patches_of_lowest_noise_are_kept_in_its_order():
    keep, masked = mask_by_noise(jnp.array([[0.9, 0.1, 0.5, 0.0, 0.7]]), 0.4)
    assert keep.tolist() == [[3, 1, 2]]
    assert masked.tolist() == [[True, False, False, False, True]]


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.9, -0.5])
def test_a_ratio_that_keeps_or_hides_no_patch_is_refused(ratio):
    with pytest.raises(ValueError, match=f"mask_ratio {ratio} keeps .* of 9 patches"):
        mask_by_noise(jnp.zeros((1, 9)), ratio)


def test_noise_is_uniform_and_follows_the_key_of_its_example():
    keys = jax.random.split(jax.random.key(2), 500)
    noise = masking_noise(keys, 7)
    assert noise.min() >= 0 and noise.max() < 1
    np.testing.assert_allclose(np.mean(noise, axis=0), np.full(7, 0.5), atol=4 / np.sqrt(12 * 500))
    np.testing.assert_array_equal(masking_noise(keys[::-1], 7), noise[::-1])


def test_scattered_tokens_are_back_in_place_with_the_fill_elsewhere(key):
    tokens = jax.random.normal(key, (2, 5, 3), jnp.float32)
    keep, masked = mask_by_noise(masking_noise(jax.random.split(key, 2), 5), 0.4)
    fill = jnp.array([7.0, 8.0, 9.0])
    put_back = scatter_tokens(gather_tokens(tokens, keep), keep, fill, 5)
    np.testing.assert_array_equal(put_back, jnp.where(masked[:, :, None], fill[None, None], tokens))
    np.testing.assert_array_equal(gather_tokens(put_back, keep), gather_tokens(tokens, keep))
