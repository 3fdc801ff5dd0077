"""Loop, scan and recomputation give the same numbers from the same parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict

from vfm_jax.core.backend import compiling_for
from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.nn.positions import RelativeIndex, places, relative_rows, rope_coordinates, rope_periods, rotation
from vfm_jax.nn.transformer import Block, Transformer

BATCH, TOKENS, WIDTH, DEPTH = 4, 5, 12, 3
FIELDS = dict(width=WIDTH, depth=DEPTH, heads=2, mlp_dim=20, layer_scale=0.5, drop_path=0.6)


@functools.cache
def _init():
    return jax.jit(Transformer(**FIELDS).init)(jax.random.key(0), jnp.zeros((1, 1, WIDTH), jnp.float32))["params"]


@pytest.fixture(scope="module")
def params():
    params = _init()
    leaves, tree = jax.tree.flatten(params)  # biases and scales of their own, or mixing them up would not show
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def tokens():
    return jax.random.normal(jax.random.key(2), (BATCH, TOKENS, WIDTH), jnp.float32)


def _run(params, tokens, **changes):
    """Output, levels and gradients, with drop path."""
    stack = Transformer(**FIELDS | changes)
    keys = jax.random.split(jax.random.key(5), BATCH)

    def total(params, tokens):
        output, levels = stack.apply({"params": params}, tokens, keys=keys, levels=(0, -2, -1))
        return jnp.sum(jnp.sin(output)), (output, levels)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, tokens)


@pytest.fixture(scope="module")
def loop(params, tokens):
    return _run(params, tokens)


def test_blocks_are_named_by_number_and_drawn_apart():
    params = _init()
    assert list(params) == ["block_0", "block_1", "block_2"]
    assert "block_2/attention/qkv/kernel" in named_leaves(params)
    first, second = (params[name]["mlp"]["up"]["kernel"] for name in ("block_0", "block_1"))
    assert (first != second).all()


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_a_scan_has_the_parameters_of_the_loop(remat):
    def shapes(**changes):
        init = Transformer(**FIELDS | changes).init
        return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1, WIDTH), jnp.float32))

    assert shapes(scan=True, remat=remat) == shapes()


@pytest.mark.parametrize(
    "changes", [{"scan": True}, {"remat": "full"}, {"remat": "dots"}, {"scan": True, "remat": "full"}]
)
def test_scan_and_recomputation_equal_the_loop_with_drop_path_levels_and_gradients(params, tokens, loop, changes):
    for one, other in zip(jax.tree.leaves(loop), jax.tree.leaves(_run(params, tokens, **changes)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_a_scan_of_accelerators_equals_the_loop_too(params, tokens, loop):
    with compiling_for("tpu"), jax.numpy_dtype_promotion("standard"):
        scan = _run(params, tokens, scan=True)
    for one, other in zip(jax.tree.leaves(loop), jax.tree.leaves(scan), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)


def test_a_scan_of_accelerators_keeps_products_and_nothing_of_norms_and_activations(params, tokens):
    """Of each block: its input, q, k and v, logits, what is mixed, both results of the MLP; in bfloat16."""
    stack = Transformer(**FIELDS | {"layer_scale": None, "drop_path": 0.0}, scan=True, dtype=jnp.bfloat16)
    params = {name: {k: v for k, v in block.items() if not k.startswith("scale")} for name, block in params.items()}

    def total(params, tokens):
        return jnp.sum(stack.apply({"params": params}, tokens)[0].astype(jnp.float32))

    with compiling_for("tpu"), jax.numpy_dtype_promotion("standard"):
        jaxpr = jax.make_jaxpr(jax.grad(total))(params, tokens.astype(jnp.bfloat16))
    forward = next(e for e in jaxpr.jaxpr.eqns if e.primitive.name == "scan")
    kept = [v.aval for v in forward.outvars[forward.params["num_carry"] :] if v.aval.shape[:2] == (DEPTH, BATCH)]
    assert {aval.dtype.name for aval in kept} == {"bfloat16"}
    per_token = sum(aval.size for aval in kept) / (DEPTH * BATCH * TOKENS)
    assert per_token <= 7 * WIDTH + 2 * TOKENS + FIELDS["mlp_dim"]


def test_levels_are_outputs_of_the_named_blocks(loop):
    (_, (output, levels)), _ = loop
    np.testing.assert_array_equal(levels[2], output)
    assert (np.asarray(levels[0]) != np.asarray(levels[1])).any()


def test_a_level_is_the_output_of_a_stack_that_ends_there(params, tokens):
    @jax.jit
    def run(tokens):
        _, (level,) = Transformer(**FIELDS).apply({"params": params}, tokens, levels=(1,))
        return level, Transformer(**FIELDS | {"depth": 2}).apply({"params": params}, tokens)[0]

    level, shorter = run(tokens)
    np.testing.assert_allclose(level, shorter, rtol=1e-6, atol=1e-6)


def test_without_keys_nothing_is_dropped(params, tokens, loop):
    @functools.partial(jax.jit, static_argnums=0)
    def run(rate, keys):
        return Transformer(**FIELDS | {"drop_path": rate}).apply({"params": params}, tokens, keys=keys)[0]

    kept = run(0.6, None)
    np.testing.assert_array_equal(kept, run(0.0, jax.random.split(jax.random.key(5), BATCH)))
    assert not np.allclose(kept, loop[0][1][0])


def test_an_example_is_dropped_by_its_key_and_not_by_its_place(params, tokens, loop):
    keys = jax.random.split(jax.random.key(5), BATCH)
    run = jax.jit(lambda x, keys: Transformer(**FIELDS).apply({"params": params}, x, keys=keys)[0])
    turned = run(tokens[::-1], keys[::-1])
    np.testing.assert_allclose(turned[::-1], loop[0][1][0], rtol=1e-5, atol=1e-5)


def test_a_scan_equals_the_loop_in_bfloat16(params, tokens):
    def run(scan):
        stack = Transformer(**FIELDS, scan=scan, dtype=jnp.bfloat16)
        return jax.jit(lambda x: stack.apply({"params": params}, x)[0])(tokens.astype(jnp.bfloat16))

    one, other = run(False), run(True)
    assert one.dtype == other.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=2**-6, atol=2**-6)


def test_the_last_attention_is_of_the_last_block_for_what_reaches_it(params, tokens):
    run = jax.jit(lambda params: Transformer(**FIELDS).apply({"params": params}, tokens, method="last_attention"))
    weights = run(params)
    assert weights.shape == (BATCH, 2, TOKENS, TOKENS)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), np.ones((BATCH, 2, TOKENS)), rtol=1e-5)
    shifted = params | {"block_0": jax.tree.map(lambda a: 2 * a, params["block_0"])}
    assert not np.allclose(run(shifted), weights)


# -------------------------------------------------------------------------------------------------- kinds of blocks

GRID = (2, 2)  # and one prefix token
ALL_TOLD = {
    "mask": jnp.arange(TOKENS)[None, None, None] < jnp.asarray([5, 3, 4, 2])[:, None, None, None],
    "bias": jax.random.normal(jax.random.key(7), (1, 2, TOKENS, TOKENS), jnp.float32),
    "rope": rotation(rope_coordinates(places(GRID)[None], np.array(GRID)[None], "separate"), rope_periods(8)),
    "where": RelativeIndex(GRID, jnp.asarray(relative_rows(GRID, 1))[None]),
}
KINDS = {  # fields, and what attention is told
    "post-norm, causal": (dict(norm_order="post", causal=True), ()),
    "rms norm, gated, no offsets": (
        dict(norm="rms_norm", mlp_kind="swiglu", activation="silu", mlp_bias=False, qkv_bias=False, out_bias=False),
        ("mask",),
    ),
    "normalised queries and keys, rotary": (dict(qk_norm=True, key_bias=False), ("rope",)),
    "relative positions, bias, mask": (dict(relative=True), ("where", "bias", "mask")),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """A stack of one kind with random parameters, what it is told, and its loop in value and gradients."""
    fields, names = KINDS[request.param]
    fields, told = FIELDS | dict(width=16) | fields, {name: ALL_TOLD[name] for name in names}
    where = told.get("where")
    tokens = jax.random.normal(jax.random.key(2), (BATCH, TOKENS, 16), jnp.float32)

    def shapes(key, tokens):
        return Transformer(**fields).init(key, tokens, where=where)["params"]

    generator = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.4 * generator.standard_normal(leaf.shape), jnp.float32),
        jax.eval_shape(shapes, jax.random.key(0), tokens),
    )

    @functools.partial(jax.jit, static_argnums=2)
    def run(params, tokens, changes=()):
        def total(params, tokens):
            stack = Transformer(**fields | dict(changes))
            keys = jax.random.split(jax.random.key(5), BATCH)
            output, levels = stack.apply({"params": params}, tokens, keys=keys, levels=(0, -1), **told)
            return jnp.sum(jnp.sin(output)), (output, levels)

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(params, tokens)

    return fields, told, params, tokens, run


def test_every_kind_of_block_runs_by_a_scan_as_by_a_loop(kind):
    *_, params, tokens, run = kind
    loop = run(params, tokens)
    scan = run(params, tokens, (("scan", True), ("remat", "full")))
    for one, other in zip(jax.tree.leaves(loop), jax.tree.leaves(scan), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5)
    largest = named_leaves(jax.tree.map(lambda a: np.abs(a).max(), loop[1][0]))
    assert [name for name, size in largest.items() if not (np.isfinite(size) and size > 0)] == []


def test_a_mask_hides_tokens_from_every_kind_and_causal_ones_hide_the_later(kind):
    """Of the last block, whose weights are zero there; and no output hears of what is hidden."""
    fields, told, params, tokens, run = kind
    look = jax.jit(
        lambda tokens: Transformer(**fields).apply({"params": params}, tokens, method="last_attention", **told)
    )
    weights = np.asarray(look(tokens))
    np.testing.assert_allclose(weights.sum(axis=-1), np.ones((BATCH, 2, TOKENS)), rtol=1e-5)
    if "mask" not in told and not fields.get("causal"):
        assert (weights > 0).all()
        return
    hidden = (
        np.triu(np.ones((TOKENS, TOKENS), bool), 1)[None] if fields.get("causal") else ~np.asarray(told["mask"][:, 0])
    )
    hidden = np.broadcast_to(hidden, (BATCH, TOKENS, TOKENS))
    assert (weights.transpose(1, 0, 2, 3)[:, hidden] == 0).all() and (weights > 0).sum() == 2 * (~hidden).sum()
    changed = run(params, tokens.at[3, 2:].add(1.0))[0][1][0]  # in example 3, two tokens are valid
    np.testing.assert_array_equal(changed[3, :2], run(params, tokens)[0][1][0][3, :2])


# ---------------------------------------------------------------------------------------------- the authors' blocks

BLOCK = {  # the authors' names -> ours, and how their axes become ours
    "norm1.weight": ("norm1/scale", "d -> d"),
    "norm1.bias": ("norm1/bias", "d -> d"),
    "attn.qkv.weight": ("attention/qkv/kernel", "(three heads e) d -> d three heads e"),
    "attn.qkv.bias": ("attention/qkv/bias", "(three heads e) -> three heads e"),
    "attn.proj.weight": ("attention/out/kernel", "d (heads e) -> heads e d"),
    "attn.proj.bias": ("attention/out/bias", "d -> d"),
    "ls1.gamma": ("scale1/gamma", "d -> d"),
    "norm2.weight": ("norm2/scale", "d -> d"),
    "norm2.bias": ("norm2/bias", "d -> d"),
    "mlp.fc1.weight": ("mlp/up/kernel", "o i -> i o"),
    "mlp.fc1.bias": ("mlp/up/bias", "d -> d"),
    "mlp.fc2.weight": ("mlp/down/kernel", "o i -> i o"),
    "mlp.fc2.bias": ("mlp/down/bias", "d -> d"),
    "mlp.w1.weight": ("mlp/gate/kernel", "o i -> i o"),
    "mlp.w1.bias": ("mlp/gate/bias", "d -> d"),
    "mlp.w2.weight": ("mlp/up/kernel", "o i -> i o"),
    "mlp.w2.bias": ("mlp/up/bias", "d -> d"),
    "mlp.w3.weight": ("mlp/down/kernel", "o i -> i o"),
    "mlp.w3.bias": ("mlp/down/bias", "d -> d"),
    "ls2.gamma": ("scale2/gamma", "d -> d"),
}


@pytest.mark.parametrize(
    ("name", "heads", "fields"),
    [
        ("block_dinov2_mlp", 3, {}),
        ("block_dinov2_mlp_b", 4, {}),
        ("block_dinov2_swiglu", 3, {"mlp_kind": "swiglu", "activation": "silu"}),
        ("block_dinov3_swiglu", 3, {"mlp_kind": "swiglu", "activation": "silu", "norm_epsilon": 1e-5}),
    ],
)
def test_a_block_and_its_gradient_equal_the_authors(golden_directory, name, heads, fields):
    with np.load(golden_directory / "components" / f"{name}.npz") as golden:
        golden = dict(golden)
    theirs = {name.removeprefix("param/"): a for name, a in golden.items() if name.startswith("param/")}
    for leaf in ("weight", "bias"):
        if f"mlp.w12.{leaf}" in theirs:  # DINOv2 keeps gate and value in one
            theirs[f"mlp.w1.{leaf}"], theirs[f"mlp.w2.{leaf}"] = np.split(theirs.pop(f"mlp.w12.{leaf}"), 2)
    params = {}
    for their_name, tensor in theirs.items():
        ours, pattern = BLOCK[their_name]
        sizes = {"heads": heads} if "heads" in pattern else {}
        sizes |= {"three": 3} if "three" in pattern else {}
        params[ours] = jnp.asarray(rearrange(tensor, pattern, **sizes))
    params = unflatten_dict(params, sep="/")
    block = Block(golden["x"].shape[-1], heads, params["mlp"]["up"]["kernel"].shape[1], layer_scale=1.0, **fields)
    x = jnp.asarray(golden["x"])
    ours = jax.eval_shape(block.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, params)
    value, pull = jax.vjp(jax.jit(lambda x: block.apply({"params": params}, x)), x)
    np.testing.assert_allclose(value, golden["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pull(jnp.asarray(golden["cotangent"]))[0], golden["grad_x"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "width of 12 does not divide into 5 heads"),
        ({"activation": "gellu"}, "Unknown name 'gellu' in activation. Did you mean 'gelu'"),
        ({"remat": "all"}, "Unknown name 'all' in remat"),
        ({"norm": "batch"}, "Unknown name 'batch' in norm"),
        ({"norm_order": "sandwich"}, "norm_order is pre or post; found 'sandwich'"),
        ({"mlp_kind": "swigl"}, "Unknown name 'swigl' in mlp. Did you mean 'swiglu'"),
    ],
)
def test_an_impossible_stack_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(Transformer(**FIELDS | fields).init, jax.random.key(0), jnp.zeros((1, 1, WIDTH), jnp.float32))


@pytest.mark.parametrize("scan", [False, True])
def test_levels_of_the_mlp_are_what_it_adds(params, tokens, scan):
    """Seen where attention adds nothing: each block's output is then its input and that."""
    silent = {
        name: {
            **block,
            "attention": {**block["attention"], "out": jax.tree.map(jnp.zeros_like, block["attention"]["out"])},
        }
        for name, block in params.items()
    }
    everything = dict(levels=(0, 1, 2))
    plain = Transformer(**FIELDS | dict(layer_scale=None))
    silent = {name: {k: v for k, v in block.items() if "scale" not in k} for name, block in silent.items()}
    _, outputs = plain.apply({"params": silent}, tokens, **everything)
    added = plain.clone(levels_of="mlp", scan=scan)
    last, mixed = jax.jit(lambda: added.apply({"params": silent}, tokens, **everything))()
    np.testing.assert_allclose(last, outputs[-1], rtol=1e-5, atol=1e-5)
    for before, after, own in zip((tokens, *outputs), outputs, mixed, strict=False):
        np.testing.assert_allclose(own, after - before, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="levels_of is block or mlp"):
        plain.clone(levels_of="attention").apply({"params": silent}, tokens)


def test_blocks_may_all_be_dropped_at_one_rate(key):
    """With a rate of nearly one nothing is left of two blocks, of the first neither."""
    x = jax.random.normal(key, (4, 3, 8), jnp.float32)
    keys = jax.random.split(key, 4)
    for shape, kept in (("linear", True), ("constant", False)):
        blocks = Transformer(8, 2, 2, 16, drop_path=0.9999, drop_path_shape=shape)
        made, _ = blocks.apply(blocks.init(key, x), x, keys=keys)
        assert (np.abs(made - x).max() > 1e-3) is np.bool_(kept)
    with pytest.raises(UserError, match="linear or constant; found 'cosine'"):
        Transformer(8, 2, 2, 16, drop_path_shape="cosine").init(key, x)
