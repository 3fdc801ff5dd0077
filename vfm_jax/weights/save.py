"""Networks of ours written as other people's folders: safetensors, config.json, preprocessing and a model card."""

import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.nn.positions import SINCOS
from vfm_jax.weights.compare import completed, unequal
from vfm_jax.weights.family import Family, Preprocessing
from vfm_jax.weights.files.safetensors import Spec, save_shards
from vfm_jax.weights.load import FAMILIES, Leaf
from vfm_jax.weights.rules import Bundle, Rule, foreign_shapes, foreign_tensors
from vfm_jax.weights.vit import vit

FORMATS = ("hf", "timm", "vfm")
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
    card: str = "",
    family: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Exported:
    """Writes the networks as a folder that `transformers` or timm loads unchanged, or one of our own.

    Args:
        folder: to make; it must not exist.
        format: "hf", "timm", or "vfm" (our leaves under our names).
        bundle: the networks.
        leaves: (collection, leaf) -> array.
        preprocessing: what the networks expect of an image.
        card: text of README.md.
        family: the naming to use, where several can hold the model.
        max_shard_bytes: of one file.

    Raises:
        UserError: the folder is there, an unknown format, or no family of the format can hold this model exactly.
    """
    if format not in FORMATS:
        raise UserError(f"There is no format {format!r}; formats are {', '.join(FORMATS)}.")
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        raise UserError(f"{folder} is there already; give another --out, or remove it first.")
    chosen, bundle, leaves, notes = _fit(format, bundle, leaves, family)
    rules = chosen.rules(bundle)
    specs = _specs(chosen, bundle, rules, leaves)
    config = chosen.config(bundle) if chosen.config else {}
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tensors = _with_buffers(chosen, bundle, foreign_tensors(rules, _on_host(leaves)))
        save_shards(part, specs, tensors, max_shard_bytes=max_shard_bytes)
        files = {"config.json": config} | _preprocessing_files(format, config, preprocessing)
        for name, content in files.items():
            (part / name).write_text(json.dumps(content, indent=2) + "\n")
        if card:
            (part / "README.md").write_text(card)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Exported(folder, chosen.name, len(specs), notes)


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
    return {
        "preprocessor_config.json": {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size[0], "width": size[1]},
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
    for buffer in family.buffers(bundle):
        yield buffer.tensor, buffer.value


def _specs(family: Family, bundle: Bundle, rules: Sequence[Rule], leaves: Mapping[Leaf, Any]) -> dict[str, Spec]:
    """Shape and dtype of every tensor of the folder, without making any."""
    shapes = {leaf: jax.ShapeDtypeStruct(value.shape, value.dtype) for leaf, value in leaves.items()}
    made = foreign_shapes(rules, {(rule.collection, rule.leaf): shapes[rule.collection, rule.leaf] for rule in rules})
    order = dict.fromkeys(name for rule in rules for name in rule.names)  # a traced dict comes back sorted
    specs = {name: Spec(made[name].shape, made[name].dtype) for name in order}
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
    closest: tuple[list[str], str] | None = None
    kind = bundle.networks.get("encoder", bundle.networks.get("towers", {})).get("name")
    for form in _forms(_Form(bundle, leaves)):
        for family in fitting:
            if kind not in family.encoders:
                continue
            differences = _differences(family, form.bundle, form.leaves)
            if not differences:
                return family, form.bundle, form.leaves, list(form.notes)
            if closest is None or len(differences) < len(closest[0]):
                closest = differences, family.name
    names = {role: spec.get("name") for role, spec in bundle.networks.items()}
    if closest is None:
        raise UserError(f"No family of the format {format!r} holds networks {names}.")
    raise UserError(
        f"No family of the format {format!r} can hold this model exactly. The nearest, {closest[1]}, differs in:\n  "
        + "\n  ".join(closest[0][:6])
    )


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
            grid = tuple(side // vit(form.bundle.networks["encoder"]).patch_size for side in form.bundle.image_size)
            table = np.asarray(make(grid, spec["width"]), np.float32).reshape(*grid, -1)
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


def _without_mask_token(form: _Form) -> _Form:
    for role, spec in _roles(form):
        if spec.get("mask_token"):
            leaves = {leaf: value for leaf, value in form.leaves.items() if leaf[1] != f"{role}/mask_token"}
            note = "the mask token is left out: it plays no part where nothing is masked"
            form = form.replaced(role, {"mask_token": False}, leaves, note)
    return form


_CHANGES = (_positions_as_table, _with_prefix_positions, _prefix_positions_added, _without_mask_token)


def _differences(family: Family, bundle: Bundle, leaves: Mapping[Leaf, Any]) -> list[str]:
    """What the model would have lost or gained after being written and read as this family; [] for nothing."""
    if family.config is None:
        return ["it is only read"]
    try:
        rules = family.rules(bundle)
    except UserError as error:
        return [str(error)]
    wanted = {(rule.collection, rule.leaf) for rule in rules}
    lacking, spare = sorted(wanted - leaves.keys()), sorted(leaves.keys() - wanted)
    found = [f"it needs the leaf {leaf}" for _, leaf in lacking] + [
        f"it has no place for {leaf}" for _, leaf in spare
    ]
    if lacking:
        return found
    shapes = {name: spec.shape for name, spec in _specs(family, bundle, rules, leaves).items()}
    try:
        config = json.loads(json.dumps(family.config(bundle)))  # as it will be read
    except UserError as error:
        return [*found, str(error)]
    again = family.read(config, shapes, {})
    for role in sorted({*bundle.networks, *again.networks}):
        if role not in again.networks or role not in bundle.networks:
            found.append(f"{role}: {'no such network there' if role not in again.networks else 'only there'}")
            continue
        here, there = completed(bundle.networks[role]), completed(again.networks[role])
        found += unequal(role, here, there)
    return found
