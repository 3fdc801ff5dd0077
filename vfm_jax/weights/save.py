"""Networks of ours written as other people's folders: safetensors, config.json, preprocessing and a model card."""

import functools
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.nn.positions import SINCOS
from vfm_jax.weights.compare import completed, unequal
from vfm_jax.weights.family import Family, Preprocessing
from vfm_jax.weights.files.safetensors import Spec, save_shards
from vfm_jax.weights.load import FAMILIES, Leaf, Weights, abstract_leaves, make_model
from vfm_jax.weights.rules import Bundle, Rule, foreign_shapes, foreign_tensors
from vfm_jax.weights.swin import window_rules_agree
from vfm_jax.weights.vit import vit

FORMATS = ("hf", "timm", "vfm")
DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
_RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


class Exported(NamedTuple):
    """A folder that was written.

    Attributes:
        folder: where it is.
        family: whose naming it is in.
        tensors: how many it holds.
        notes: what was changed on the way, and why nothing is lost by it.
    """

    folder: pathlib.Path
    family: str
    tensors: int
    notes: Sequence[str]


def export(
    folder: str | os.PathLike[str],
    format: str,
    bundle: Bundle,
    leaves: Mapping[Leaf, Any],
    preprocessing: Preprocessing,
    *,
    card: Callable[[str, Sequence[str]], str] | None = None,
    family: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Exported:
    """Writes the networks as a folder that `transformers` or timm loads unchanged, or one of our own.

    Args:
        folder: to make; it must not exist.
        format: "hf", "timm", or "vfm" (our leaves under our names).
        bundle: the networks.
        leaves: (collection, leaf) -> array, or what `np.asarray` makes one of (`Unread`).
        preprocessing: what the networks expect of an image.
        card: (family, notes) -> the text of README.md; see `Exported` for the two.
        family: the naming to use, where several can hold the model.
        dtype: of the tensors: "float32", "bfloat16" or "float16"; None for that of the leaves.
        max_shard_bytes: of one file.

    Raises:
        UserError: the folder is there or cannot be written, an unknown format, no family of the format can hold this
            model exactly, or a number is too large for the dtype. Nothing is left of the folder then.
    """
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}; formats are {', '.join(FORMATS)}.")
    cast = lookup(DTYPES, dtype, "dtype") if dtype is not None else None
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise UserError(f"{folder} is there already; give another --out, or remove it first.")
    chosen, bundle, leaves, notes = _fit(format, bundle, leaves, family)
    if cast is not None:
        leaves = {leaf: _rounded(leaf[1], value, cast) for leaf, value in leaves.items()}
    rules = chosen.rules(bundle)
    specs = _specs(chosen, bundle, rules, leaves)
    config = chosen.config(bundle) if chosen.config else {}
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tensors = _with_buffers(chosen, bundle, foreign_tensors(rules, _on_host(leaves)))
        save_shards(part, specs, tensors, max_shard_bytes=max_shard_bytes)
        files = {"config.json": config} | _preprocessing_files(format, config, preprocessing)
        for name, content in files.items():
            (part / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if card is not None:
            (part / "README.md").write_text(card(chosen.name, notes), encoding="utf-8")
        part.rename(folder)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"{folder} cannot be written: {error.strerror or error}. Give another --out.") from error
        raise
    return Exported(folder, chosen.name, len(specs), notes)


class Unread(NamedTuple):
    """A leaf that is made when `np.asarray` asks for it, so that only one is in memory at a time."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # a view of the file, or an array of nobody else's
        return np.asarray(self.read(), dtype)


def unread(weights: Weights) -> dict[Leaf, Any]:
    """Every leaf of a file in the dtype of the file, to be read one at a time while the file is open.

    Raises:
        UserError: the file does not fill its networks leaf by leaf.
    """
    shapes = abstract_leaves(make_model(weights.bundle.networks), weights.bundle)
    lacking, spare = sorted(shapes.keys() - weights.rules.keys()), sorted(weights.rules.keys() - shapes.keys())
    if lacking or spare or weights.unused:
        what = [f"lacks {name}" for _, name in lacking] + [f"has no place for {name}" for _, name in spare]
        what += [f"the tensor {name} belongs to nothing" for name in weights.unused]
        raise UserError(f"{weights.source} does not fill its network leaf by leaf: {_some(what, '; ')}.")
    return {
        leaf: Unread(shapes[leaf].shape, weights.file.dtypes[rule.names[0]], functools.partial(weights.read, leaf))
        for leaf, rule in weights.rules.items()
    }


def _rounded(name: str, value: Any, dtype: np.dtype) -> Unread:
    def read() -> np.ndarray:
        array = np.asarray(value)
        with np.errstate(over="ignore"):
            rounded = array.astype(dtype)
        if np.isfinite(array.astype(np.float32)).all() and not np.isfinite(rounded.astype(np.float32)).all():
            raise UserError(
                f"{name} has values up to {np.abs(array).max():.3g}, too large for {dtype.name}. Take bfloat16."
            )
        return rounded

    return Unread(tuple(value.shape), dtype, read)


class _on_host(Mapping[Leaf, np.ndarray]):
    """Leaves brought to the host one at a time."""

    def __init__(self, leaves: Mapping[Leaf, Any]):
        self._leaves = leaves

    def __getitem__(self, leaf: Leaf) -> np.ndarray:
        return np.asarray(self._leaves[leaf])

    def __iter__(self):
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)


def _preprocessing_files(
    format: str, config: dict[str, Any], preprocessing: Preprocessing
) -> dict[str, dict[str, Any]]:
    """Other files of the folder; timm's and ours stand in config.json itself."""
    size, mean, std, interpolation, ratio = preprocessing
    if format == "timm":
        config["pretrained_cfg"] = config.get("pretrained_cfg", {}) | {
            "mean": list(mean),
            "std": list(std),
            "interpolation": interpolation,
            "crop_pct": ratio,
        }
        return {}
    if format == "vfm":
        config["preprocessing"] = preprocessing._asdict()
        return {}
    whole = {"image_processor_type": "ViTImageProcessor", "size": {"height": size[0], "width": size[1]}}
    cropped = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": round(min(size) / ratio)},
        "do_center_crop": True,
        "crop_size": whole["size"],
    }
    return {
        "preprocessor_config.json": {
            **(whole if ratio == 1.0 else cropped),
            "do_resize": True,
            "resample": _RESAMPLE[interpolation],
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(mean),
            "image_std": list(std),
        }
    }


def _with_buffers(
    family: Family, bundle: Bundle, tensors: Iterable[tuple[str, np.ndarray]]
) -> Iterable[tuple[str, np.ndarray]]:
    yield from tensors
    counts = bundle.options.get("counts", {})  # of the file that was read, where there was one
    for buffer in family.buffers(bundle):
        yield buffer.tensor, np.asarray(counts.get(buffer.tensor, buffer.value), buffer.value.dtype)


def _specs(family: Family, bundle: Bundle, rules: Sequence[Rule], leaves: Mapping[Leaf, Any]) -> dict[str, Spec]:
    """Shape and dtype of every tensor of the folder, without making any."""
    used = {(rule.collection, rule.leaf) for rule in rules}
    made = foreign_shapes(rules, {leaf: jax.ShapeDtypeStruct(leaves[leaf].shape, np.float32) for leaf in used})
    # In the order of the rules: a traced dict comes back sorted. The dtype is the leaf's, which JAX may not have.
    dtypes = {name: np.dtype(leaves[rule.collection, rule.leaf].dtype) for rule in rules for name in rule.names}
    specs = {name: Spec(made[name].shape, dtype) for name, dtype in dtypes.items()}
    return specs | {b.tensor: Spec(b.value.shape, b.value.dtype) for b in family.buffers(bundle)}


# --------------------------------------------------------------------------------- which family can hold the model


def _fit(
    format: str, bundle: Bundle, leaves: Mapping[Leaf, Any], name: str | None
) -> tuple[Family, Bundle, Mapping[Leaf, Any], list[str]]:
    """The family, and the bundle and leaves in its terms.

    A family holds a model if what it would read from its own config and tensors is that model again.
    """
    if format == "vfm":
        listed = {**bundle.options, "leaves": tuple("/".join(leaf) for leaf in leaves)}
        return FAMILIES["vfm_jax"], bundle._replace(options=listed), leaves, []
    fitting = [f for f in FAMILIES.values() if f.name.startswith(f"{format}/") and f.config]
    if name is not None:
        fitting = [lookup({f.name: f for f in fitting}, name, "family")]
    first = bundle.options.get("family", "")
    fitting.sort(key=lambda f: f.name != first)  # the one it came from, if any
    found: dict[str, tuple[int, int, list[str]]] = {}
    kind = bundle.networks.get("encoder", bundle.networks.get("towers", {})).get("name")
    for form in _forms(_Form(bundle, leaves)):
        for family in fitting:
            if kind not in family.encoders:
                continue
            rank, differences = _differences(family, form.bundle, form.leaves)
            if not differences:
                return family, form.bundle, form.leaves, list(form.notes)
            reached = rank, len(differences), differences
            found[family.name] = min(found.get(family.name, reached), reached)
    ours = "--format=vfm writes a folder of our own, which holds every model."
    if not found:
        names = ", ".join(f"{role} {spec.get('name')!r}" for role, spec in bundle.networks.items())
        raise UserError(f"No family of the format {format!r} holds {names}. {ours}")
    nearest = sorted(found, key=lambda family: (found[family][0] > 1, found[family][1], found[family][0]))
    lines = [f"{family}: {_some(found[family][2], '; ', 2)}" for family in nearest[:3]]
    raise UserError(
        "\n  ".join([f"No family of the format {format!r} can hold this model exactly. Nearest are", *lines])
        + f"\n{ours}"
    )


def _some(lines: Sequence[str], between: str, shown: int = 3) -> str:
    more = [f"and {len(lines) - shown} more"] if len(lines) > shown else []
    return between.join([*lines[:shown], *more])


class _Form(NamedTuple):
    """The model in other words that compute the same, and what was changed."""

    bundle: Bundle
    leaves: Mapping[Leaf, Any]
    notes: tuple[str, ...] = ()

    def replaced(self, role: str, fields: Mapping[str, Any], leaves: Mapping[Leaf, Any], note: str) -> "_Form":
        networks = {**self.bundle.networks, role: {**self.bundle.networks[role], **fields}}
        return _Form(self.bundle._replace(networks=networks), leaves, (*self.notes, f"{role}: {note}"))


def _forms(form: _Form) -> Iterator[_Form]:
    """The model as it is, then equal ones with one change, with two, ...: the first that fits is the plainest."""
    for count in range(len(_CHANGES) + 1):
        for changes in itertools.combinations(_CHANGES, count):
            changed = form
            for change in changes:
                made = change(changed)
                if made is changed:
                    break
                changed = made
            else:
                yield changed


def _roles(form: _Form) -> Iterator[tuple[str, dict[str, Any]]]:
    """Networks of a ViT's kind: the encoder, and MAE's decoder beside it."""
    for role in ("encoder", "decoder"):
        spec = form.bundle.networks.get(role, {})
        if spec.get("name") in ("vit", "masked_decoder"):
            yield role, completed(spec)


def _positions_as_table(form: _Form) -> _Form:
    for role, spec in _roles(form):
        if make := SINCOS.get(spec["positions"]):
            rows, columns = (
                side // vit(form.bundle.networks["encoder"]).patch_size for side in form.bundle.image_size
            )
            table = np.asarray(make((rows, columns), spec["width"]), np.float32).reshape(rows, columns, -1)
            leaves = {**form.leaves, ("params", f"{role}/positions"): table}
            form = form.replaced(role, {"positions": "learned"}, leaves, "the fixed positions are written as a table")
    return form


def _with_prefix_positions(form: _Form) -> _Form:
    for role, spec in _roles(form):
        encoder = completed(form.bundle.networks["encoder"])
        tokens = encoder["class_token"] + encoder["distillation_token"]
        if spec["positions"] == "learned" and tokens and not spec["prefix_positions"]:
            zeros = np.zeros((tokens, spec["width"]), np.float32)
            leaves = {**form.leaves, ("params", f"{role}/prefix_positions"): zeros}
            note = "positions of the first tokens, which this model does not have, are written as zero"
            form = form.replaced(role, {"prefix_positions": tokens}, leaves, note)
    return form


def _prefix_positions_added(form: _Form) -> _Form:
    for role, spec in _roles(form):
        own, token = ("params", f"{role}/prefix_positions"), ("params", f"{role}/class_token")
        if role == "encoder" and spec["prefix_positions"] == 1 and token in form.leaves:
            leaves = {leaf: value for leaf, value in form.leaves.items() if leaf != own}
            leaves[token] = np.asarray(form.leaves[token]) + np.asarray(form.leaves[own])[0]
            note = "the class token's position is added to the class token itself"
            form = form.replaced(role, {"prefix_positions": 0}, leaves, note)
    return form


def _mask_token(form: _Form) -> _Form:
    """Without one where there is one, and the other way round: it plays no part where nothing is masked."""
    spec = form.bundle.networks.get("encoder", {})
    if spec.get("name") not in ("vit", "swin"):
        return form
    leaf = ("params", "encoder/mask_token")
    leaves = {name: value for name, value in form.leaves.items() if name != leaf}
    if leaf in form.leaves:
        note = "the mask token is left out, which plays no part where nothing is masked"
        return form.replaced("encoder", {"mask_token": False}, leaves, note)
    if spec["name"] == "swin":
        return form
    leaves[leaf] = np.zeros((vit(spec).sizes[0],), np.float32)
    note = "a mask token of zeros is written, which plays no part where nothing is masked"
    return form.replaced("encoder", {"mask_token": True}, leaves, note)


def _with_layer_scales(form: _Form) -> _Form:
    spec = form.bundle.networks.get("encoder", {})
    if spec.get("name") != "vit" or vit(spec).layer_scale is not None:
        return form
    width, depth, _, _ = vit(spec).sizes
    names = [f"encoder/transformer/block_{i}/{scale}/gamma" for i in range(depth) for scale in ("scale1", "scale2")]
    leaves = {**form.leaves, **{("params", name): np.ones((width,), np.float32) for name in names}}
    return form.replaced("encoder", {"layer_scale": 1.0}, leaves, "layer scales, all one, are written")


def _encoder_alone(form: _Form) -> _Form:
    """Without the networks that serve a method's training alone."""
    left = sorted(form.bundle.networks.keys() - {"encoder", "head", "distillation_head", "token_head", "towers"})
    if not left or "encoder" not in form.bundle.networks:
        return form
    networks = {role: spec for role, spec in form.bundle.networks.items() if role not in left}
    leaves = {leaf: value for leaf, value in form.leaves.items() if leaf[1].split("/")[0] not in left}
    note = f"left out, as they served training alone: {', '.join(left)}"
    return _Form(form.bundle._replace(networks=networks), leaves, (*form.notes, note))


def _without_mean_token(form: _Form) -> _Form:
    spec = form.bundle.networks.get("encoder", {})
    if not spec.get("mean_token"):
        return form
    note = "the mean of the patches, pooled all the same, is no token there, and the tokens are not normalised"
    return form.replaced("encoder", {"mean_token": False}, form.leaves, note)


def _other_window_rule(form: _Form) -> _Form:
    spec = form.bundle.networks.get("encoder", {})
    if spec.get("name") != "swin" or not window_rules_agree(spec, form.bundle.image_size):
        return form
    rule = "joint" if completed(spec)["window_rule"] == "separate" else "separate"
    note = "on images of {} x {} pixels its windows are as here".format(*form.bundle.image_size)
    return form.replaced("encoder", {"window_rule": rule}, form.leaves, note)


_CHANGES = (
    _encoder_alone,
    _positions_as_table,
    _with_prefix_positions,
    _prefix_positions_added,
    _mask_token,
    _with_layer_scales,
    _without_mean_token,
    _other_window_rule,
)


def _differences(family: Family, bundle: Bundle, leaves: Mapping[Leaf, Any]) -> tuple[int, list[str]]:
    """What the model would have lost or gained after being written and read as this family; [] for nothing.

    The number before it says how far the comparison came: 0 to the fields of the networks, 1 to the words of the
    config, 2 to the leaves, 3 not even there.
    """
    if family.config is None:
        return 3, ["it is only read"]
    try:
        rules = family.rules(bundle)
    except UserError as error:
        return 3, [str(error)]
    wanted = {(rule.collection, rule.leaf) for rule in rules}
    found = [f"it needs the leaf {leaf}" for _, leaf in sorted(wanted - leaves.keys())]
    found += [f"it has no place for {leaf}" for _, leaf in sorted(leaves.keys() - wanted)]
    if found:
        return 2, found
    shapes = {name: spec.shape for name, spec in _specs(family, bundle, rules, leaves).items()}
    try:
        config = json.loads(json.dumps(family.config(bundle)))  # as it will be read
        if not family.matches(config, shapes):
            return 1, ["it would not be recognised as of this family"]
        again = family.read(config, shapes, {})
    except UserError as error:
        return 1, [str(error)]
    for role in sorted({*bundle.networks, *again.networks}):
        if role not in again.networks or role not in bundle.networks:
            found.append(f"{role}: {'no such network there' if role not in again.networks else 'only there'}")
            continue
        here, there = completed(bundle.networks[role]), completed(again.networks[role])
        found += unequal(role, here, there)
    if not found and again.image_size != tuple(bundle.image_size):
        found.append(f"its images would be {again.image_size}, not {bundle.image_size}")
    return 0, found
