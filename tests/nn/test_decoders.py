"""MAE's decoder (tests/objectives/test_mae.py holds its numbers to the authors') and I-JEPA's predictor."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.models.vit import ViT
from vfm_jax.nn.decoders import JepaPredictor, MaskedDecoder
from vfm_jax.nn.positions import sincos_2d

GRID, PIXELS = (2, 3), 9


@functools.partial(jax.jit, static_argnums=0)
def _decode(decoder, variables, tokens, keep):
    return decoder.apply(variables, tokens, keep, GRID, PIXELS)


@pytest.fixture(scope="module")
def decoded():
    decoder = MaskedDecoder(width=16, depth=1, heads=2)
    tokens = jax.random.normal(jax.random.key(0), (2, 1 + 3, 10), jnp.float32)
    keep = jnp.array([[4, 0, 3], [1, 5, 2]])
    variables = jax.jit(decoder.init, static_argnums=(3, 4))(jax.random.key(1), tokens, keep, GRID, PIXELS)
    output = _decode(decoder, variables, tokens, keep)
    return decoder, variables, tokens, keep, output


def test_every_patch_gets_pixels_and_prefix_tokens_none(decoded):
    assert decoded[-1].shape == (2, 6, PIXELS)


def test_tokens_are_placed_by_index_and_not_by_their_order(decoded):
    decoder, variables, tokens, keep, output = decoded
    order = jnp.array([2, 0, 1])
    turned = jnp.concatenate([tokens[:, :1], tokens[:, 1:][:, order]], axis=1)
    again = _decode(decoder, variables, turned, keep[:, order])
    np.testing.assert_allclose(again, output, rtol=1e-5, atol=1e-5)


def test_hidden_patches_differ_by_their_position_alone(decoded):
    """All hidden patches of an image start from one mask token, so only positions can tell them apart."""
    _, variables, _, keep, output = decoded
    assert variables["params"]["mask_token"].shape == (16,)
    hidden = np.setdiff1d(np.arange(6), np.asarray(keep[0]))
    assert np.ptp(np.asarray(output)[0, hidden], axis=0).max() > 1e-3


def test_pixels_are_float32_under_bfloat16(decoded):
    _, variables, tokens, keep, _ = decoded
    decoder = MaskedDecoder(width=16, depth=1, heads=2, dtype=jnp.bfloat16)
    assert jax.eval_shape(lambda *args: _decode(decoder, *args), variables, tokens, keep).dtype == jnp.float32


def test_a_stored_table_of_positions_serves_as_the_fixed_one_and_prefix_tokens_may_have_their_own(decoded):
    _, variables, tokens, keep, output = decoded
    decoder = MaskedDecoder(width=16, depth=1, heads=2, positions="learned", prefix_positions=1)
    table = jnp.asarray(sincos_2d(GRID, 16)).reshape(*GRID, 16)
    own = {"positions": table, "prefix_positions": jnp.zeros((1, 16), jnp.float32)}
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), tokens, keep, GRID, PIXELS))
    stored = {"params": variables["params"] | own}
    assert {k: v.shape for k, v in named_leaves(shapes).items()} == {
        k: v.shape for k, v in named_leaves(stored).items()
    }
    np.testing.assert_allclose(_decode(decoder, stored, tokens, keep), output, rtol=1e-6, atol=1e-6)
    moved = {"params": stored["params"] | {"prefix_positions": jnp.arange(16, dtype=jnp.float32)[None]}}
    assert np.abs(_decode(decoder, moved, tokens, keep) - output).max() > 1e-3


def test_unknown_positions_of_a_decoder_are_refused():
    decoder = MaskedDecoder(width=16, depth=1, heads=2, positions="sincos")
    with pytest.raises(UserError, match="sincos2d"):
        decoder.init(jax.random.key(0), jnp.zeros((1, 3, 4), jnp.float32), jnp.zeros((1, 2), jnp.int32), GRID, PIXELS)


def _torch_block(golden, block):
    def heads(name, shape):
        return jnp.asarray(golden[f"{block}.{name}"].reshape(shape))

    width = golden[f"{block}.norm1.weight"].shape[0]
    count = 3 if block.startswith("predictor") else 4
    dense = {
        part: {
            "kernel": jnp.asarray(golden[f"{block}.{name}.weight"].T),
            "bias": jnp.asarray(golden[f"{block}.{name}.bias"]),
        }
        for part, name in {"up": "mlp.fc1", "down": "mlp.fc2"}.items()
    }
    qkv = heads("attn.qkv.weight", (3, count, width // count, width))
    out = jnp.asarray(golden[f"{block}.attn.proj.weight"].T.reshape(count, width // count, width))
    return {
        "norm1": _torch_norm(golden, f"{block}.norm1"),
        "norm2": _torch_norm(golden, f"{block}.norm2"),
        "attention": {
            "qkv": {
                "kernel": jnp.transpose(qkv, (3, 0, 1, 2)),
                "bias": heads("attn.qkv.bias", (3, count, width // count)),
            },
            "out": {"kernel": out, "bias": jnp.asarray(golden[f"{block}.attn.proj.bias"])},
        },
        "mlp": dense,
    }


def _torch_norm(golden, name):
    return {"scale": jnp.asarray(golden[f"{name}.weight"]), "bias": jnp.asarray(golden[f"{name}.bias"])}


def _torch_dense(golden, name):
    return {"kernel": jnp.asarray(golden[f"{name}.weight"].T), "bias": jnp.asarray(golden[f"{name}.bias"])}


@pytest.fixture(scope="module")
def jepa(golden_directory):
    golden = dict(np.load(golden_directory / "models/orig_ijepa.npz"))
    sizes = json.loads(str(golden["meta"]))["config"]
    return golden, sizes


def test_the_context_encoder_of_ijepa_equals_the_authors(jepa):
    golden, sizes = jepa
    vit = ViT(
        f"S/{sizes['patch_size']}",
        sizes["embed_dim"],
        sizes["depth"],
        64,
        sizes["num_heads"],
        positions="sincos2d",
        class_token=False,
        pooling="mean",
    )
    patch = golden["encoder/patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    params = {
        "patch_embedding": {
            "kernel": jnp.asarray(patch),
            "bias": jnp.asarray(golden["encoder/patch_embed.proj.bias"]),
        },
        "transformer": {f"block_{i}": _torch_block(golden, f"encoder/blocks.{i}") for i in range(sizes["depth"])},
        "norm": _torch_norm(golden, "encoder/norm"),
    }
    np.testing.assert_allclose(sincos_2d((6, 6), 32), golden["encoder/pos_embed"][0], atol=1e-6)
    image = jnp.asarray(golden["x_nchw"].transpose(0, 2, 3, 1))
    close = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(vit.apply({"params": params}, image).tokens, golden["encoded_full"], **close)
    seen = vit.apply({"params": params}, image, keep=jnp.asarray(golden["enc_masks"][0]))
    np.testing.assert_allclose(seen.tokens, golden["encoded_context"], **close)


@pytest.mark.parametrize("positions", ["sincos2d", "learned"])
def test_the_predictor_of_ijepa_equals_the_authors(jepa, positions):
    golden, sizes = jepa
    own = sizes["predictor"]
    predictor = JepaPredictor(
        own["predictor_embed_dim"], own["depth"], own["num_heads"], mlp_dim=48, positions=positions
    )
    params = {
        "embed": _torch_dense(golden, "predictor/predictor_embed"),
        "mask_token": jnp.asarray(golden["predictor/mask_token"][0, 0]),
        "transformer": {
            f"block_{i}": _torch_block(golden, f"predictor/predictor_blocks.{i}") for i in range(own["depth"])
        },
        "norm": _torch_norm(golden, "predictor/predictor_norm"),
        "out": _torch_dense(golden, "predictor/predictor_proj"),
    }
    if positions == "learned":
        params["positions"] = jnp.asarray(golden["predictor/predictor_pos_embed"].reshape(6, 6, -1))
    inputs = (
        jnp.asarray(golden["encoded_context"]),
        jnp.asarray(golden["enc_masks"]),
        jnp.asarray(golden["pred_masks"]),
    )
    shapes = jax.eval_shape(lambda: predictor.init(jax.random.key(0), *inputs, (6, 6)))["params"]
    assert {k: v.shape for k, v in named_leaves(shapes).items()} == {
        k: v.shape for k, v in named_leaves(params).items()
    }
    predicted = predictor.apply({"params": params}, *inputs, (6, 6))
    np.testing.assert_allclose(predicted, golden["predicted"], rtol=1e-3, atol=1e-4)


def test_rows_of_the_predictor_are_by_block_then_context_then_example():
    """Two contexts and three blocks at once give what each pair gives alone."""
    predictor = JepaPredictor(width=8, depth=1, heads=2, mlp_dim=12)
    keys = jax.random.split(jax.random.key(0), 4)
    tokens = jax.random.normal(keys[0], (2 * 2, 4, 5), jnp.float32)  # contexts x examples
    context = jax.random.randint(keys[1], (2, 2, 4), 0, 12)
    targets = jax.random.randint(keys[2], (3, 2, 6), 0, 12)
    whole, variables = predictor.init_with_output(keys[3], tokens, context, targets, (3, 4))
    whole = whole.reshape(3, 2, 2, 6, 5)
    for block in range(3):
        for e in range(2):
            rows = tokens[2 * e : 2 * e + 2]
            one = predictor.apply(variables, rows, context[e : e + 1], targets[block : block + 1], (3, 4))
            np.testing.assert_allclose(one, whole[block, e], rtol=1e-4, atol=1e-5)
