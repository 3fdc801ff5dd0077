"""AutoAugment: pairs are drawn as the policy says, and made by the changes that RandAugment is tested with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.augment import VIEW_OPS
from vfm_jax.augment.auto_augment import POLICY, draw_pair
from vfm_jax.augment.policies import CHANGES, change
from vfm_jax.core.errors import UserError

DRAWS = 20_000


def test_pairs_are_drawn_alike_and_their_changes_as_often_as_the_policy_says(key):
    kinds, strengths = jax.jit(jax.vmap(lambda k: draw_pair(k, 200)))(jax.random.split(key, DRAWS))
    for place in (0, 1):
        for name in CHANGES:
            share = np.mean([pair[place][1] * (pair[place][0] == name) for pair in POLICY])
            found = np.mean(kinds[:, place] == CHANGES.index(name))
            assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / DRAWS) + 1e-9, name
    moved = np.unique(strengths[kinds[:, 1] == CHANGES.index("translate_y"), 1])
    np.testing.assert_allclose(moved, [-0.9 * 250 / 200, 0.9 * 250 / 200], rtol=1e-6)
    thresholds = np.unique(strengths[kinds[:, 0] == CHANGES.index("solarize"), 0])
    np.testing.assert_array_equal(thresholds, [np.floor(25.6 * magnitude) for magnitude in (2, 3, 4, 8)])


def test_an_image_gets_both_changes_in_turn(key):
    image = jax.random.uniform(jax.random.key(1), (12, 12, 3), jnp.float32)
    kinds, strengths = draw_pair(key, 12)
    expected = image
    for kind, strength in zip(kinds, strengths, strict=True):
        expected = change(expected, kind, strength, jnp.array([0.2, 0.3, 0.4]), "bilinear")
    made, _ = VIEW_OPS["auto_augment"](fill=(0.2, 0.3, 0.4))(key, image, None)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_what_it_cannot_use_is_refused(key):
    with pytest.raises(UserError, match=r"fill is 2\.0; expected one value from 0 to 1"):
        VIEW_OPS["auto_augment"](fill=2.0)
    operation = VIEW_OPS["auto_augment"]()
    with pytest.raises(UserError, match="Put a crop or a resize before it"):
        operation(key, jnp.zeros((8, 8, 3), jnp.float32), jnp.array([5, 4], jnp.int32))
    with pytest.raises(UserError, match="these have 4 channels"):
        operation(key, jnp.zeros((8, 8, 4), jnp.float32), None)
