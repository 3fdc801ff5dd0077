"""A trained run, or weights of any family, as a folder that `transformers` or timm loads, with a model card."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import flatten_dict, named_leaves
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.stages import read_stages
from vfm_jax.weights.family import Preprocessing
from vfm_jax.weights.load import Leaf, abstract_leaves, load_leaves, make_model, read_weights
from vfm_jax.weights.rules import Bundle
from vfm_jax.weights.save import Exported, export

_RUN = "config.json"


def export_weights(
    path: str, format: str, out: str | os.PathLike[str], *, family: str | None = None, **given: Any
) -> Exported:
    """Writes the weights of a run (or of one of its checkpoints), or of any file that can be read, to a new folder.

    Of a run the averaged parameters are taken where it kept an average.

    Args:
        path: a run's workdir, a checkpoint in it, or what `read_weights` takes.
        format: "hf", "timm" or "vfm".
        out: folder to make.
        family: the naming to use, where several can hold the model ("hf/dinov2").
        **given: for `read_weights`.

    Raises:
        UserError: nothing to export there, or no family of the format can hold the model exactly.
    """
    if _is_run(pathlib.Path(path)):
        bundle, leaves, preprocessing, facts = read_run(pathlib.Path(path))
    else:
        bundle, leaves, preprocessing, facts = _read_weights(path, **given)
    return export(out, format, bundle, leaves, preprocessing, card=model_card(facts), family=family)


def _is_run(path: pathlib.Path) -> bool:
    """A workdir, its checkpoints/, a stage of it or one step."""
    return (
        (path / "checkpoints").is_dir()
        or (path.is_dir() and (path / "manifest.json").is_file())
        or any(step.is_dir() and step.name.isdigit() for step in (path.iterdir() if path.is_dir() else ()))
        or path.name == "checkpoints"
    )


def _read_weights(path: str, **given: Any) -> tuple[Bundle, dict[Leaf, Any], Preprocessing, dict[str, Any]]:
    weights = read_weights(path, **given)
    with weights.file:
        account = weights.account()
        targets = abstract_leaves(make_model(weights.bundle.networks), weights.bundle)
        leaves = dict(load_leaves(weights, targets, account))
    bundle = weights.bundle._replace(options={"family": weights.family.name, **weights.bundle.options})
    facts = {"title": pathlib.Path(path).name, "source": str(bundle.options.get("source", path))}
    return bundle, leaves, weights.preprocessing, facts | {"licence": weights.licence, "networks": bundle.networks}


def read_run(path: pathlib.Path) -> tuple[Bundle, dict[Leaf, Any], Preprocessing, dict[str, Any]]:
    """Networks, leaves, preprocessing and the facts for the model card of a run or one of its checkpoints.

    Raises:
        UserError: there is no usable checkpoint.
    """
    saved = restore_params(path)
    params = saved.ema or saved.params
    recipe = next(s.recipe for s in read_stages(saved.meta["recipe"]) if s.name == saved.meta["stage"])
    leaves: dict[Leaf, Any] = {("params", name): leaf for name, leaf in named_leaves(params).items()}
    for role, collections in saved.statistics.items():
        for name, leaf in named_leaves(collections.get("batch_stats", {})).items():
            leaves["batch_stats", f"{role}/{name}"] = leaf
    networks = {role: spec for role, spec in recipe["networks"].items() if role in params}
    size, mean, std = _pixels(recipe, path)
    kernel = next((leaf for (_, name), leaf in leaves.items() if name == "encoder/patch_embedding/kernel"), None)
    channels = kernel.shape[2] if kernel is not None else len(mean)
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    bundle = Bundle(networks, size, channels)
    return bundle, leaves, Preprocessing(size, mean, std), _facts(path, recipe, saved.meta, networks)


def _pixels(
    recipe: Mapping[str, Any], path: pathlib.Path
) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Height and width the encoder sees, and mean and deviation of its pixels, from the recipe's evaluation views."""
    views = recipe.get("eval_views") or recipe["views"]
    ops = next(iter(views.values()))["ops"]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size = None
    for op in ops:
        if op["name"] == "normalize":
            mean, std = (tuple(v) if isinstance(v, list | tuple) else (float(v),) for v in (op["mean"], op["std"]))
        elif op.get("size") is not None:
            size = op["size"]
    size = size or _image_size(path) or recipe["data"].get("canvas_size") or recipe["data"].get("crop_size")
    if size is None:
        raise UserError(
            f"{path} does not say how large its images are: no summary.json beside it, no size in its views."
        )
    return ((size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))), mean, std


def _summary(path: pathlib.Path) -> dict[str, Any]:
    for folder in (path, *path.absolute().parents[:3]):
        if (folder / "summary.json").is_file():
            return json.loads((folder / "summary.json").read_text())
    return {}


def _image_size(path: pathlib.Path) -> tuple[int, int] | None:
    shape = _summary(path).get("data", {}).get("image_shape")
    return (shape[0], shape[1]) if shape else None


def _facts(
    path: pathlib.Path, recipe: Mapping[str, Any], meta: Mapping[str, Any], networks: Mapping[str, Any]
) -> dict[str, Any]:
    summary = _summary(path)
    start = recipe.get("init", {}).get("weights") or meta["recipe"].get("start_from") or ""
    return {
        "title": summary.get("title") or recipe.get("title") or path.name,
        "source": start,
        "licence": "",
        "networks": networks,
        "objective": recipe["objective"],
        "recipe": recipe,
        "steps": f"{meta['step']:,} steps, {meta['examples_seen']:,} examples seen (stage {meta['stage']})",
        "data": summary.get("data", {}).get("name") or recipe["data"]["name"],
        "num_examples": summary.get("data", {}).get("num_examples"),
        "metrics": summary.get("evaluations", {}),
        "versions": meta.get("versions", {}),
    }


def model_card(facts: Mapping[str, Any]) -> str:
    """The README.md of an export: where the weights are from, how they were trained, and what they reach."""
    licence = facts.get("licence") or "not known; see the source weights and the data"
    lines = [
        "---",
        "library_name: vfm_jax",
        "tags: [vision, image-feature-extraction]",
        "---",
        "",
        f"# {facts['title']}",
        "",
    ]
    lines += [f"- Source weights: {facts['source'] or 'none; trained from scratch'}", f"- Licence: {licence}"]
    lines += [f"- {role}: {_words(spec)}" for role, spec in facts["networks"].items()]
    if "recipe" not in facts:
        return "\n".join([*lines, ""])
    lines += ["", "## Training", "", f"- Objective: {_words(facts['objective'])}", f"- Length: {facts['steps']}"]
    size = f", {facts['num_examples']:,} images" if facts.get("num_examples") else ""
    lines += [f"- Data: {facts['data']}{size}"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    lines += [f"- Code: {versions}"]
    if facts["metrics"]:
        lines += ["", "## Figures", "", "| | | |", "|---|---|---|"]
        for name, figures in facts["metrics"].items():
            lines += [f"| {name.replace('_', ' ')} | {what} | {value:.4g} |" for what, value in figures.items()]
    hidden = ("data.path", "init.weights", "eval_data")  # paths of the machine it was trained on
    fields = {k: v for k, v in flatten_dict(facts["recipe"]).items() if not k.startswith(hidden)}
    lines += ["", "## Recipe", "", "```", *(f"{k} = {v!r}" for k, v in sorted(fields.items())), "```", ""]
    return "\n".join(lines)


def _words(spec: Mapping[str, Any]) -> str:
    given = [f"{k} {v}" for k, v in spec.items() if k != "name" and v is not None and not isinstance(v, Mapping)]
    return f"{spec['name']} ({', '.join(given)})" if given else str(spec["name"])
