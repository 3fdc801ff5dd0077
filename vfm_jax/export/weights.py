"""A trained run, or weights of any family, as a folder that `transformers` or timm loads, with a model card."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import flatten_dict, named_leaves
from vfm_jax.experiment import listed
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.stages import read_stages
from vfm_jax.weights.family import Preprocessing
from vfm_jax.weights.files import open_weights
from vfm_jax.weights.hub import CHECKPOINTS
from vfm_jax.weights.load import Leaf, read_weights
from vfm_jax.weights.origin import licence_of, published_name
from vfm_jax.weights.rules import Bundle
from vfm_jax.weights.save import Exported, export, unread

_FIRST_KERNELS = tuple(f"encoder/{part}/kernel" for part in ("patch_embedding", "stem", "stage_0_conv_0"))
_PLACE = re.compile(r"(~|\.{0,2}/|[A-Za-z]:[\\/]|\w+://)[^|()\[\]$^*+?]*$")
_HOW = {
    "transformers": 'model = transformers.AutoModel.from_pretrained("FOLDER")',
    "timm": 'model = timm.create_model("local-dir:FOLDER", pretrained=True)',
    "vfm_jax": 'model, variables, preprocessing, account = vfm_jax.weights.load_pretrained("FOLDER")',
}


def export_weights(
    path: str | os.PathLike[str],
    format: str,
    out: str | os.PathLike[str],
    *,
    family: str | None = None,
    dtype: str | None = None,
    **given: Any,
) -> Exported:
    """Writes the weights of a run (or of one of its checkpoints), or of any file that can be read, to a new folder.

    Of a run the averaged parameters are taken where it kept an average.

    Args:
        path: a run's workdir, a checkpoint in it, or what `read_weights` takes.
        format: "hf", "timm" or "vfm".
        out: folder to make.
        family: the naming to use, where several can hold the model ("hf/dinov2").
        dtype: of the tensors: "float32", "bfloat16" or "float16"; None for that of the run or the file.
        **given: for `read_weights`.

    Raises:
        UserError: nothing to export there, or no family of the format can hold the model exactly.
    """
    if _is_run(pathlib.Path(path)):
        bundle, leaves, preprocessing, facts = read_run(pathlib.Path(path))
        card = functools.partial(model_card, facts)
        return export(out, format, bundle, leaves, preprocessing, card=card, family=family, dtype=dtype)
    weights = read_weights(path, **given)
    with weights.file:
        bundle = weights.bundle._replace(options={"family": weights.family.name, **weights.bundle.options})
        source = str(bundle.options.get("source", "")) or published_name(path)
        facts = {"title": published_name(path), "source": source, "licence": weights.licence}
        card = functools.partial(model_card, facts | {"networks": bundle.networks})
        settings = weights.preprocessing
        return export(out, format, bundle, unread(weights), settings, card=card, family=family, dtype=dtype)


def _is_run(path: pathlib.Path) -> bool:
    """A workdir, its checkpoints/, a stage of it or one step."""
    return (
        (path / "checkpoints").is_dir()
        or (path.is_dir() and (path / "manifest.json").is_file())
        or any(step.is_dir() and step.name.isdigit() for step in (path.iterdir() if path.is_dir() else ()))
        or path.name == "checkpoints"
    )


def read_run(path: pathlib.Path) -> tuple[Bundle, dict[Leaf, Any], Preprocessing, dict[str, Any]]:
    """Networks, leaves, preprocessing and the facts for the model card of a run or one of its checkpoints.

    Raises:
        UserError: there is no usable checkpoint.
    """
    saved = restore_params(path)
    params, statistics = saved.result
    recipe = next(s.recipe for s in read_stages(saved.meta["recipe"]) if s.name == saved.meta["stage"])
    leaves: dict[Leaf, Any] = {("params", name): leaf for name, leaf in named_leaves(params).items()}
    for role in params:
        for name, leaf in named_leaves(statistics.get(role, {}).get("batch_stats", {})).items():
            leaves["batch_stats", f"{role}/{name}"] = leaf
    networks = {role: spec for role, spec in recipe["networks"].items() if role in params}
    settings = _preprocessing(recipe, path)
    kernel = next((leaf for (_, name), leaf in leaves.items() if name in _FIRST_KERNELS), None)
    channels = kernel.shape[2] if kernel is not None else len(settings.mean)
    if len(settings.mean) == 1:
        settings = settings._replace(mean=settings.mean * channels, std=settings.std * channels)
    facts = _facts(path, recipe, saved.meta, networks)
    return Bundle(networks, settings.size, channels), leaves, settings, facts


def _preprocessing(recipe: Mapping[str, Any], path: pathlib.Path) -> Preprocessing:
    """What the encoder sees in evaluation, from the recipe's views; one value of mean or std is of every channel."""
    views = recipe.get("eval_views") or recipe["views"]
    ops = {op["name"]: op for op in listed(views)[0]["ops"]}
    fields = ops.get("normalize", {})
    mean, std = (
        tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),)
        for value in (fields.get("mean", 0.0), fields.get("std", 1.0))
    )
    sized = next((op for op in ops.values() if op.get("size") is not None), {})
    size = sized.get("size") or _image_size(path) or recipe["data"].get("canvas_size")
    if size is None:
        raise UserError(
            f"{path} does not say how large its images are: no summary.json beside it, no size in its views."
        )
    size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    ratio = min(size) / sized["resize_shorter"] if sized.get("resize_shorter") else 1.0
    return Preprocessing(size, mean, std, sized.get("interpolation", "bicubic"), ratio)


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
    source, licence = _origin({**meta["recipe"], **recipe})
    return {
        "title": summary.get("title") or recipe.get("title") or path.name,
        "source": source,
        "licence": licence,
        "networks": networks,
        "objective": recipe["objective"],
        "recipe": recipe,
        "steps": f"{meta['step']:,} steps, {meta['examples_seen']:,} examples seen (stage {meta['stage']})",
        "averaged": bool(recipe.get("ema")),
        "num_examples": summary.get("data", {}).get("num_examples"),
        "metrics": summary.get("evaluations", {}),
        "versions": meta.get("versions", {}),
    }


def _origin(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """What the run started from, and under which licence that is; "" for a start from scratch, or an unknown one."""
    init = recipe.get("init") or {}
    if source := init.get("weights"):
        return published_name(source), _licence(source)
    if before := recipe.get("start_from") or recipe.get("branch_from"):
        recipes = (folder / "config.json" for folder in (pathlib.Path(before), *pathlib.Path(before).parents[:3]))
        found = next((json.loads(file.read_text()) for file in recipes if file.is_file()), {})
        source, licence = _origin(found)
        return f"the run {published_name(before)}" + (f", which started from {source}" if source else ""), licence
    return "", ""


def _licence(source: str) -> str:
    if source in CHECKPOINTS:
        return CHECKPOINTS[source].licence
    if source.startswith("hf:"):
        return ""  # its repository says, and is not asked for it here
    try:
        file = open_weights(pathlib.Path(source).expanduser())
    except UserError:
        return ""  # it has been moved since
    with file:
        return licence_of(source, file)


def model_card(facts: Mapping[str, Any], family: str, notes: Sequence[str] = ()) -> str:
    """The README.md of an export: where the weights are from, how they were trained, and what they reach.

    Args:
        facts: source, licence and networks; of a run also its recipe, data, figures and versions.
        family: whose naming the folder is in.
        notes: what was changed on the way there.
    """
    source, licence = facts["source"], facts["licence"]
    library = {"hf": "transformers", "timm": "timm"}.get(family.partition("/")[0], "vfm_jax")
    repository = CHECKPOINTS[source].repository if source in CHECKPOINTS else source.removeprefix("hf:")
    head = [f"library_name: {library}", "tags: [vision, image-feature-extraction]"]
    head += [f"license: {licence}"] if licence else []
    head += [f"base_model: {repository}"] if repository and "/" in repository and " " not in repository else []
    how = _HOW[library]
    if library == "transformers" and "head" in facts["networks"]:
        how = how.replace("AutoModel", "AutoModelForImageClassification")
    lines = ["---", *head, "---", "", f"# {facts['title']}", "", "```python", how, "```", ""]
    lines.append(f"- Source weights: {source or 'none, trained from scratch'}")
    unknown = f"not known; see {repository or 'the data'}"
    lines.append(f"- Licence{' of the source weights' if 'recipe' in facts and source else ''}: {licence or unknown}")
    lines += [f"- {role}: {_words(spec)}" for role, spec in facts["networks"].items()]
    lines += [f"- Tensors: named as {family} has them"] + [f"- Changed on the way: {n}" for n in notes]
    return "\n".join([*lines, *(_training(facts) if "recipe" in facts else ()), ""])


def _training(facts: Mapping[str, Any]) -> list[str]:
    recipe = _without_places(facts["recipe"])
    size = f", {facts['num_examples']:,} images" if facts["num_examples"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    lines = ["", "## Training", "", f"- Objective: {_words(facts['objective'])}", f"- Length: {facts['steps']}"]
    lines += [f"- Data: {_words(recipe['data'])}{size}", f"- Code: {versions}"]
    lines += ["- The weights are the running average of the run's"] if facts["averaged"] else []
    if facts["metrics"]:
        lines += ["", "## Figures", "", "At the end of the run.", "", "| | | |", "|---|---|---|"]
        for name, figures in facts["metrics"].items():
            lines += [f"| {name.replace('_', ' ')} | {what} | {value:.4g} |" for what, value in figures.items()]
    fields = [f"{field} = {value!r}" for field, value in sorted(flatten_dict(recipe).items()) if value is not None]
    return [*lines, "", "## Recipe", "", "```", *fields, "```"]


def _without_places(value: Any) -> Any:
    """A recipe in which of every path on the machine it ran on only the last part is left."""
    if isinstance(value, Mapping):
        return {field: _without_places(item) for field, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_without_places(item) for item in value)
    if isinstance(value, str) and _PLACE.match(value):
        return f".../{pathlib.PurePath(value).name}"
    return value


def _words(spec: Mapping[str, Any]) -> str:
    given = [f"{k} {v}" for k, v in spec.items() if k != "name" and v is not None and not isinstance(v, Mapping)]
    return f"{spec['name']} ({', '.join(given)})" if given else str(spec["name"])
