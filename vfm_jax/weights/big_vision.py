"""ViTs as big_vision and google-research/vision_transformer save them: Flax leaves in an .npz."""

from collections.abc import Mapping
from typing import Any

from vfm_jax.weights.family import HALF, Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes
from vfm_jax.weights.vit import linear_head, square_grid, variant_of, vit

# big_vision numbers the modules of a block one way, vision_transformer (and so the AugReg files) another.
_BLOCKS = (
    {
        "norm1": "LayerNorm_0",
        "attention": "MultiHeadDotProductAttention_0",
        "norm2": "LayerNorm_1",
        "mlp": "MlpBlock_0",
    },
    {
        "norm1": "LayerNorm_0",
        "attention": "MultiHeadDotProductAttention_1",
        "norm2": "LayerNorm_2",
        "mlp": "MlpBlock_3",
    },
)
_POSITIONS = ("pos_embedding", "Transformer/posembed_input/pos_embedding")
_SCANNED = "Transformer/encoderblock/"  # all blocks in one tensor, the depth its first axis


def _block_names(shapes: Shapes, prefix: str) -> tuple[dict[str, str], bool]:
    scanned = any(name.startswith(prefix + _SCANNED) for name in shapes)
    block = prefix + (_SCANNED if scanned else "Transformer/encoderblock_0/")
    names = next(names for names in _BLOCKS if f"{block}{names['attention']}/query/kernel" in shapes)
    return names, scanned


def _prefix(shapes: Shapes) -> str | None:
    """What the names begin with: nothing, or "img/" for the image tower of a two-tower file."""
    return next((prefix for prefix in ("", "img/") if f"{prefix}Transformer/encoder_norm/scale" in shapes), None)


def _matches(config: Config | None, shapes: Shapes) -> bool:
    prefix = _prefix(shapes)
    return config is None and prefix is not None and f"{prefix}embedding/kernel" in shapes


def _read(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    prefix = _prefix(shapes) or ""
    names, scanned = _block_names(shapes, prefix)
    block = prefix + (_SCANNED if scanned else "Transformer/encoderblock_0/")
    patch_size, _, channels, width = shapes[f"{prefix}embedding/kernel"]
    query = shapes[f"{block}{names['attention']}/query/kernel"]
    depth = (
        query[0]
        if scanned
        else sum(name.endswith(f"{names['attention']}/query/kernel") and "encoderblock_" in name for name in shapes)
    )
    mlp_dim = shapes[f"{block}{names['mlp']}/Dense_0/kernel"][-1]
    class_token, mapped = f"{prefix}cls" in shapes, f"{prefix}MAPHead_0/probe" in shapes
    spec: dict[str, Any] = {
        "name": "vit",
        **variant_of(width, depth, mlp_dim, query[-2], patch_size),
        "class_token": class_token,
        "activation": "gelu_tanh",
        "norm_epsilon": 1e-6,
        "pooling": "attention" if mapped else "class" if class_token else "mean",
        "position_resampling": "linear_corners",
    }
    positions = next((prefix + name for name in _POSITIONS if prefix + name in shapes), None)
    image_size = given.get("image_size") or (14 * patch_size, 14 * patch_size)
    if positions is None:
        spec["positions"] = "sincos2d_bigvision"
    else:
        # vision_transformer's class token has a position of its own, big_vision's has none
        own = int("posembed_input" in positions and class_token)
        spec["prefix_positions"] = own
        total = shapes[positions][1] - own
        if not ("image_size" in given and image_size[0] * image_size[1] // patch_size**2 == total):
            rows, columns = square_grid(total, positions)
            image_size = (rows * patch_size, columns * patch_size)
    if f"{prefix}pre_logits/kernel" in shapes:
        spec["representation"] = shapes[f"{prefix}pre_logits/kernel"][1]
    networks: dict[str, Any] = {"encoder": spec}
    if f"{prefix}head/kernel" in shapes:
        networks["head"] = linear_head(shapes[f"{prefix}head/kernel"][1])
    options = {"prefix": prefix, "block": names, "scanned": scanned, "positions": positions}
    return Bundle(networks, image_size, channels, options)


def _same(leaf: str, module: str, **kwargs: Any) -> list[Rule]:
    return [Rule(f"{leaf}/{part}", (f"{module}/{part}",), **kwargs) for part in ("kernel", "bias")]


def _norm(leaf: str, module: str) -> list[Rule]:
    return [Rule(f"{leaf}/{part}", (f"{module}/{part}",)) for part in ("scale", "bias")]


def _joined(leaf: str, module: str, parts: tuple[str, ...]) -> list[Rule]:
    """Query, key and value, or key and value, stacked."""
    kernels, biases = (tuple(f"{module}/{part}/{kind}" for part in parts) for kind in ("kernel", "bias"))
    return [
        Rule(f"{leaf}/kernel", kernels, "parts d heads e -> d parts heads e"),
        Rule(f"{leaf}/bias", biases, "parts heads e -> parts heads e"),
    ]


def _block_rules(leaf: str, block: str, names: Mapping[str, str]) -> list[Rule]:
    attention, mlp = f"{block}{names['attention']}", f"{block}{names['mlp']}"
    return [
        *_norm(f"{leaf}/norm1", f"{block}{names['norm1']}"),
        *_joined(f"{leaf}/attention/qkv", attention, ("query", "key", "value")),
        *_same(f"{leaf}/attention/out", f"{attention}/out"),
        *_norm(f"{leaf}/norm2", f"{block}{names['norm2']}"),
        *_same(f"{leaf}/mlp/up", f"{mlp}/Dense_0"),
        *_same(f"{leaf}/mlp/down", f"{mlp}/Dense_1"),
    ]


# axes of each leaf of a block, for the scanned form: theirs with the depth first
_AXES = {
    "qkv/kernel": ("parts 1 d heads e", "d parts heads e"),
    "qkv/bias": ("parts 1 heads e", "parts heads e"),
    "out/kernel": ("1 heads e d", "heads e d"),
    "kernel": ("1 i o", "i o"),
    "": ("1 d", "d"),
}


def _one_of_scanned(rule: Rule, layer: int) -> Rule:
    theirs, ours = next(axes for ending, axes in _AXES.items() if rule.leaf.endswith(ending))
    return rule._replace(pattern=f"{theirs} -> {ours}", part=(0, layer, layer + 1))


def _rules(bundle: Bundle) -> list[Rule]:
    model = vit(bundle.networks["encoder"])
    options = {"prefix": "", "block": _BLOCKS[0], "scanned": False, "positions": "pos_embedding", **bundle.options}
    prefix, names = options["prefix"], options["block"]
    rules = _same("encoder/patch_embedding", f"{prefix}embedding")
    if model.class_token:
        rules.append(Rule("encoder/class_token", (f"{prefix}cls",), "1 1 d -> d"))
    if model.positions == "learned":
        rows, columns = (side // model.patch_size for side in bundle.image_size)
        table, k = (options["positions"],), model.prefix_positions
        if k:
            rules.append(Rule("encoder/prefix_positions", table, "1 n d -> n d", part=(1, 0, k)))
        part = (1, k, None) if k else None
        rules.append(Rule("encoder/positions", table, "1 (h w) d -> h w d", {"h": rows, "w": columns}, part))
    for i in range(model.sizes[1]):
        leaf = f"encoder/transformer/block_{i}"
        if options["scanned"]:
            block = _block_rules(leaf, prefix + _SCANNED, names)
            rules += [_one_of_scanned(rule, i) for rule in block]
        else:
            rules += _block_rules(leaf, f"{prefix}Transformer/encoderblock_{i}/", names)
    rules += _norm("encoder/norm", f"{prefix}Transformer/encoder_norm")
    if model.pooling == "attention":
        head = f"{prefix}MAPHead_0"
        attention = f"{head}/MultiHeadDotProductAttention_0"
        rules += [
            Rule("encoder/pool/probe", (f"{head}/probe",), "1 1 d -> 1 d"),
            *_same("encoder/pool/query", f"{attention}/query"),
            *_joined("encoder/pool/key_value", attention, ("key", "value")),
            *_same("encoder/pool/out", f"{attention}/out"),
            *_norm("encoder/pool/norm", f"{head}/LayerNorm_0"),
            *_same("encoder/pool/mlp/up", f"{head}/MlpBlock_0/Dense_0"),
            *_same("encoder/pool/mlp/down", f"{head}/MlpBlock_0/Dense_1"),
        ]
    if model.representation:
        rules += _same("encoder/representation", f"{prefix}pre_logits")
    if "head" in bundle.networks:
        rules += _same("head/logits", f"{prefix}head")
    return rules


FAMILIES = (Family("big_vision/vit", _matches, _read, _rules, mean_std=HALF),)
