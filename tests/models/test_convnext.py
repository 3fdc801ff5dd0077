"""What is special about ConvNeXt; its numbers are held in tests/weights/test_convnets.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import count_parameters
from vfm_jax.models.convnext import ConvNeXt

SMALL = dict(depths=(1, 2), widths=(6, 10))


def _image(height=20, width=29):
    return jax.random.normal(jax.random.key(1), (3, height, width, 4), jnp.float32)


def _shapes(model, image):
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image))


@pytest.mark.parametrize(
    ("fields", "millions"),
    [  # without the classifier of a thousand classes
        (dict(variant="T"), 28.6 - 0.769),  # Liu et al., 2022, Table 1
        (dict(variant="B"), 88.6 - 1.025),
        (dict(variant="A", grn=True, layer_scale=None), 3.7 - 0.321),  # Woo et al., 2023, Table 9
        (dict(variant="H", grn=True, layer_scale=None), 659 - 2.82),
    ],
)
def test_the_variants_have_the_papers_number_of_parameters(fields, millions):
    _, variables = _shapes(ConvNeXt(**fields), jnp.zeros((1, 32, 32, 3), jnp.float32))
    assert count_parameters(variables["params"]) / 1e6 == pytest.approx(millions, rel=0.012)


def test_pixels_that_fill_no_cell_are_left_out(random_variables):
    model, image = ConvNeXt(**SMALL, levels=("stem", 0, -1)), _image()
    variables = random_variables(model, image)
    features = jax.jit(model.apply)(variables, image)
    assert (model.patch_size, features.grid) == (8, (2, 3))
    assert features.level_grids == ((5, 7), (5, 7), (2, 3))
    cut = jax.jit(model.apply)(variables, image[:, :20, :28])
    np.testing.assert_allclose(features.tokens, cut.tokens, atol=1e-6)


def test_the_mean_token_comes_first_and_is_pooled(random_variables):
    model = ConvNeXt(**SMALL, mean_token=True)
    variables = random_variables(model, _image())
    features = jax.jit(model.apply)(variables, _image())
    assert (features.tokens.shape, features.num_prefix_tokens) == ((3, 1 + 6, 10), 1)
    np.testing.assert_array_equal(features.pooled, features.tokens[:, 0])


def test_drop_path_skips_blocks_in_training_alone_and_by_each_examples_key(random_variables):
    model, image = ConvNeXt(**SMALL, drop_path=0.9, layer_scale=1.0), _image()
    variables = random_variables(model, image)
    keys = jax.random.split(jax.random.key(2), 3)
    evaluated = jax.jit(model.apply)(variables, image, keys=keys)
    np.testing.assert_allclose(evaluated.pooled, jax.jit(model.apply)(variables, image).pooled, atol=1e-6)
    train = jax.jit(lambda image, keys: model.apply(variables, image, keys=keys, train=True))
    trained = train(image, keys)
    assert np.abs(trained.tokens - evaluated.tokens).max() > 1e-3
    alone = train(image[1:2], keys[1:2])
    np.testing.assert_allclose(alone.tokens[0], trained.tokens[1], atol=1e-5)


def test_patches_cannot_be_left_out_and_levels_must_exist():
    with pytest.raises(UserError, match="cannot leave patches out"):
        ConvNeXt(**SMALL).init(jax.random.key(0), _image(), keep=jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(UserError, match="stages 0 to 1"):
        _shapes(ConvNeXt(**SMALL, levels=(2,)), _image())


def _standard(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def _sparse(params, image, masked, side):
    """The network of the visible cells alone, position by position: one image, one block for each of two stages."""
    stem, positions = params["stem"], {}
    cells = {divmod(int(n), image.shape[1] // side) for n in np.flatnonzero(~masked)}
    for row in range(image.shape[0] // 2):
        for column in range(image.shape[1] // 2):
            if (2 * row // side, 2 * column // side) in cells:
                window = image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                x = np.einsum("ijc,ijcd->d", window, stem["kernel"]) + stem["bias"]
                positions[row, column] = _standard(x) * params["stem_norm"]["scale"] + params["stem_norm"]["bias"]
    for stage in ("stage_0", "stage_1"):
        own = params[stage]
        if stage == "stage_1":
            norm, down, coarse = own["downsample_norm"], own["downsample"], {}
            for (row, column), x in positions.items():
                y = (_standard(x) * norm["scale"] + norm["bias"]) @ down["kernel"][row % 2, column % 2]
                coarse[row // 2, column // 2] = coarse.get((row // 2, column // 2), down["bias"]) + y
            positions = coarse
        positions = _sparse_block(own["block_0"], positions)
    return positions


def _sparse_block(own, positions):
    hidden = {}
    for row, column in positions:
        y = own["depthwise"]["bias"].copy()
        for (r, c), x in positions.items():
            if abs(r - row) <= 3 and abs(c - column) <= 3:
                y = y + own["depthwise"]["kernel"][r - row + 3, c - column + 3, 0] * x
        y = (_standard(y) * own["norm"]["scale"] + own["norm"]["bias"]) @ own["up"]["kernel"] + own["up"]["bias"]
        hidden[row, column] = np.asarray(jax.nn.gelu(y, approximate=False))
    norms = np.sqrt(sum(np.square(y) for y in hidden.values()))
    relative = norms / (norms.mean() + 1e-6)
    return {
        place: positions[place]
        + (own["grn"]["scale"] * (y * relative) + own["grn"]["bias"] + y) @ own["down"]["kernel"]
        + own["down"]["bias"]
        for place, y in hidden.items()
    }


def test_masked_cells_are_left_out_as_in_a_sparse_network(random_variables):
    """And their pixels, whatever they are, change nothing."""
    model = ConvNeXt(depths=(1, 1), widths=(4, 6), stem_size=2, layer_scale=None, grn=True)
    image = _image(12, 16)
    masked = np.array([[0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0], [1, 0] * 6, [0] * 12], bool)
    variables = random_variables(model, image)
    found = jax.jit(model.apply)(variables, image, masked=masked)
    for i in range(3):
        expected = _sparse(jax.tree.map(np.asarray, variables["params"]), np.asarray(image[i]), masked[i], 4)
        tokens = np.zeros((3, 4, 6), np.float32)
        for place, x in expected.items():
            tokens[place] = x
        np.testing.assert_allclose(found.tokens[i].reshape(3, 4, 6), tokens, rtol=1e-4, atol=1e-4)
        norm, mean = variables["params"]["norm"], np.mean(list(expected.values()), axis=0)
        np.testing.assert_allclose(
            found.pooled[i], _standard(mean) * norm["scale"] + norm["bias"], rtol=1e-3, atol=1e-3
        )
    hidden = np.kron(masked.reshape(3, 3, 4), np.ones((4, 4)))[..., None] > 0
    others = jax.jit(model.apply)(variables, jnp.where(hidden, jnp.nan, image), masked=masked)
    np.testing.assert_array_equal(others.tokens, found.tokens)
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, image).tokens[2], found.tokens[2], rtol=1e-4, atol=1e-4
    )
