"""State dicts of nobody's family: names and layouts are turned into ours, and mistakes in the table are named."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.weights.files import Spec, save_safetensors
from vfm_jax.weights.load import load_pretrained, read_weights
from vfm_jax.weights.rename import rename_rules, renamed
from vfm_jax.weights.rules import read_leaf

TARGETS = {
    ("params", "encoder/qkv/kernel"): (6, 3, 2, 5),
    ("params", "encoder/qkv/bias"): (3, 2, 5),
    ("params", "encoder/out/kernel"): (2, 5, 6),
    ("params", "encoder/positions"): (2, 3, 6),
    ("params", "encoder/prefix_positions"): (1, 6),
    ("params", "encoder/class_token"): (6,),
    ("params", "encoder/conv/kernel"): (4, 5, 3, 6),
    ("params", "encoder/norm/scale"): (6,),
    ("batch_stats", "encoder/norm/mean"): (6,),
    ("batch_stats", "encoder/norm/var"): (6,),
}


class Dict(dict):
    """A state dict as `read_leaf` wants it."""

    @property
    def shapes(self):
        return {name: value.shape for name, value in self.items()}

    def read(self, name):
        return self[name]


def numbered(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def leaves(tensors, table):
    source = Dict(tensors)
    rules = rename_rules(source.shapes, renamed(source, table), TARGETS)
    return {(rule.collection, rule.leaf): read_leaf(rule, source) for rule in rules}


def test_every_layout_of_torch_is_turned_into_ours():
    tensors = {
        "a.in_proj_weight": numbered(30, 6),
        "a.in_proj_bias": numbered(30),
        "a.out.weight": numbered(6, 10),
        "pos": numbered(1, 7, 6),
        "cls": numbered(1, 1, 6),
        "stem.weight": numbered(6, 3, 4, 5),
        "bn.weight": numbered(6),
        "bn.running_mean": 1 + numbered(6),
        "bn.running_var": 2 + numbered(6),
    }
    table = (
        (r"^a\.in_proj_", "encoder/qkv."),
        (r"^a\.out", "encoder/out"),
        ("^pos$", "encoder/positions"),
        ("^cls$", "encoder/class_token"),
        ("^stem", "encoder/conv"),
        ("^bn", "encoder/norm"),
    )
    found = leaves(tensors, table)
    assert {leaf: value.shape for leaf, value in found.items()} == TARGETS
    x = numbered(6)
    heads = np.einsum("d,dthe->the", x, found["params", "encoder/qkv/kernel"])
    np.testing.assert_allclose(heads.ravel(), tensors["a.in_proj_weight"] @ x, rtol=1e-6)
    merged = np.einsum("he,hed->d", numbered(2, 5), found["params", "encoder/out/kernel"])
    np.testing.assert_allclose(merged, tensors["a.out.weight"] @ numbered(10), rtol=1e-6)
    np.testing.assert_array_equal(found["params", "encoder/prefix_positions"], tensors["pos"][0, :1])
    np.testing.assert_array_equal(found["params", "encoder/positions"].reshape(6, 6), tensors["pos"][0, 1:])
    np.testing.assert_array_equal(found["params", "encoder/conv/kernel"][1, 2, 0], tensors["stem.weight"][:, 0, 1, 2])
    np.testing.assert_array_equal(found["batch_stats", "encoder/norm/var"], tensors["bn.running_var"])


@pytest.mark.parametrize(
    ("tensors", "table", "expected"),
    [
        ({"cls": (1, 1, 6)}, [("^cls_token$", "encoder/class_token")], ["'^cls_token$'", "cls"]),
        ({"cls": (6,)}, [("cls(", "encoder/class_token")], ["'cls('", "cannot be used"]),
        ({"cls": (6,)}, [("^cls$", r"encoder/\1")], ["cannot be used", "group"]),
        ({"cls": (6,)}, [("^cls$", "encoder/clas_token")], ["no leaf", "'encoder/class_token'"]),
        ({"a": (6,), "b": (6,)}, [("^[ab]$", "encoder/class_token")], ["'a'", "'b'", "both"]),
        ({"cls": (7,)}, [("^cls$", "encoder/class_token")], ["(7,)", "(6,)"]),
        ({"pos": (1, 8, 6)}, [("^pos$", "encoder/positions")], ["8 positions", "2 x 3", "image_size"]),
    ],
)
def test_a_mistake_in_the_table_is_named(tensors, table, expected):
    with pytest.raises(UserError) as error:
        leaves({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, table)
    for part in ("rename", *expected):
        assert part in str(error.value)


WIDTH, HEADS = 8, 2
SHAPES = {
    "stem.weight": (WIDTH, 3, 2, 2), "stem.bias": (WIDTH,), "layers.0.attn.in_proj_weight": (3 * WIDTH, WIDTH),
    "layers.0.attn.in_proj_bias": (3 * WIDTH,), "layers.0.attn.out_proj.weight": (WIDTH, WIDTH),
    "layers.0.attn.out_proj.bias": (WIDTH,), "layers.0.linear1.weight": (5, WIDTH), "layers.0.linear1.bias": (5,),
    "layers.0.linear2.weight": (WIDTH, 5), "layers.0.linear2.bias": (WIDTH,), "layers.0.norm1.weight": (WIDTH,),
    "layers.0.norm1.bias": (WIDTH,), "layers.0.norm2.weight": (WIDTH,), "layers.0.norm2.bias": (WIDTH,),
    "fc.weight": (3, WIDTH), "fc.bias": (3,),
}  # fmt: skip
TABLE = (
    (r"^stem", "encoder/patch_embedding"),
    (r"^layers\.(\d+)\.", r"encoder/transformer/block_\1/"),
    (r"attn\.in_proj_", "attention/qkv."),
    (r"attn\.out_proj", "attention/out"),
    (r"linear1", "mlp/up"),
    (r"linear2", "mlp/down"),
    (r"^fc", "head/logits"),
)
NETWORKS = {
    "encoder": dict(name="vit", variant="B/2", width=WIDTH, depth=1, heads=HEADS, mlp_dim=5, activation="relu",
                    positions="none", norm_order="post", norm_epsilon=1e-5, final_norm=False, class_token=False,
                    pooling="mean"),
}  # fmt: skip


@pytest.fixture
def state_dict(tmp_path):
    """A small classifier of somebody's: a post-norm block with ReLU, as torch.nn.TransformerEncoderLayer has it."""
    random = np.random.default_rng(0)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    path = tmp_path / "mine.safetensors"
    save_safetensors(path, {n: Spec(v.shape, v.dtype) for n, v in tensors.items()}, tensors.items())
    return path, tensors


def torch_block(x, t):
    """`TransformerEncoderLayer` on tokens (n, d), by hand."""

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    def dense(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    q, k, v = np.split(x @ t["attn.in_proj_weight"].T + t["attn.in_proj_bias"], 3, axis=-1)
    heads = [slice(i * WIDTH // HEADS, (i + 1) * WIDTH // HEADS) for i in range(HEADS)]
    scores = [q[:, h] @ k[:, h].T / np.sqrt(WIDTH // HEADS) for h in heads]
    weights = [np.exp(s - s.max(-1, keepdims=True)) for s in scores]
    mixed = [w / w.sum(-1, keepdims=True) @ v[:, h] for w, h in zip(weights, heads, strict=True)]
    x = norm(x + dense(np.concatenate(mixed, -1), "attn.out_proj"), "norm1")
    return norm(x + dense(np.maximum(dense(x, "linear1"), 0), "linear2"), "norm2")


def test_a_renamed_file_computes_what_its_authors_code_did(state_dict):
    path, t = state_dict
    networks = NETWORKS | {"head": dict(name="linear_head", num_classes=3)}
    loaded = load_pretrained(path, rename=TABLE, networks=networks, image_size=4)
    assert len(loaded.account.loaded) == len(SHAPES)
    image = np.random.default_rng(1).normal(size=(4, 4, 3)).astype(np.float32)
    patches = image.reshape(2, 2, 2, 2, 3).transpose(0, 2, 4, 1, 3).reshape(4, 12)  # n (c h w)
    tokens = patches @ t["stem.weight"].reshape(WIDTH, 12).T + t["stem.bias"]
    block = {name.removeprefix("layers.0."): value for name, value in t.items()}
    wanted = t["fc.weight"] @ torch_block(tokens, block).mean(axis=0) + t["fc.bias"]
    logits = loaded.model.apply(loaded.variables, jnp.asarray(image)[None], method="logits")
    np.testing.assert_allclose(logits[0], wanted, rtol=1e-4, atol=1e-5)


def test_networks_that_nobody_asked_for_stay_in_the_file(state_dict):
    weights = read_weights(state_dict[0], rename=TABLE, networks=NETWORKS, image_size=4)
    with weights.file:
        assert set(weights.others) == {"fc.weight", "fc.bias"}
        assert not weights.unused
        assert "2 other tensors (fc)" in str(weights.account())


def test_a_tensor_that_the_table_leaves_out_is_missed(state_dict):
    with pytest.raises(UserError, match=r"2 with no place in the network: fc"):
        load_pretrained(state_dict[0], rename=TABLE[:-1], networks=NETWORKS, image_size=4)


def test_a_table_needs_networks_and_an_image_size(state_dict):
    with pytest.raises(UserError, match=r"networks=.*image_size"):
        read_weights(state_dict[0], rename=TABLE)
