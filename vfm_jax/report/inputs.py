"""What a run leaves in its workdir for its page, and how it is read back. Everything may be missing.

`config.json`      the resolved config, nested.
`metrics.jsonl`    see `writers.py`. Drawn as curves: the metrics `loss`, `learning_rate`, `gradient_norm`,
                   `images_per_second` of "train" rows; every metric of "eval" rows measured at least twice.
`summary.json`     an object with any of

    title             what the run is called ("quickstart")
    objective         name in the table of objectives ("mae")
    network           a few words ("ViT, width 96, depth 4, patch 7")
    num_parameters    of what is pretrained
    data              {name, num_examples, num_test, image_shape: [h, w, c], num_classes}
    seed
    batch_size
    stages            [{name, steps, total_steps}, ...] in the order run; `steps` are those done; with them
                      {input_bound_ratio, reading_shares: {"decode": 0.6, ...}, verdict}: the share of the time that
                      was spent waiting for data, what reading them was spent on, and the doctor's word on it ("")
    bad_samples       {reasons: {"truncated": 3, ...}, records: [{name, reason, detail}, ...]}: records that could not
                      be used, counted, and the first of them; {} where there were none
    steps, total_steps    over all stages
    finished          bool
    stopped_by        why not, in words ("Ctrl-C")
    wall_seconds, images_per_second
    evaluations       {"pretrained" or the stage's name | "public_weights" (those a run started from, before it) |
                      "random_init" | "raw_pixels": {"knn/accuracy": 0.9, ...}};
                      metrics with "accuracy" in their name are shares in [0, 1]
    versions, hardware    as `environment.versions` and `environment.hardware` give them

`report_data.npz`  the arrays of `ARRAYS`; images are floats in [0, 1] (or uint8) of any number of channels.
"""

import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.report.writers import read_metrics

# Name -> axes. Arrays of one group (before the slash) come together, and equal letters in a group are equal sizes.
ARRAYS = {
    "images": "n h w c",  # test images, as they enter the network
    "reconstruction/original": "n h w c",
    "reconstruction/masked": "n h w c",  # hidden patches in a flat gray
    "reconstruction/reconstructed": "n h w c",
    "attention/image": "n h w c",
    "attention/maps": "n heads gh gw",  # of the class token or the pooling query over the patches, last block
    "patches/image": "n h w c",
    "patches/tokens": "n gh gw d",  # final patch tokens
    "embedding/features": "m d",  # of test images; a thousand is plenty
    "embedding/labels": "m",
    "neighbors/query": "q h w c",  # test images
    "neighbors/images": "q k h w c",  # the most similar training images, the most similar first
    "neighbors/query_label": "q",
    "neighbors/labels": "q k",
    "class_names": "classes",  # strings; for label i stands class_names[i]
}
OPTIONAL = {"embedding/labels", "neighbors/query_label", "neighbors/labels"}  # unlabelled data have none
FILE = "report_data.npz"


class RunFiles(NamedTuple):
    """What was found in a workdir; `notes` says in plain words what could not be read."""

    summary: dict[str, Any]
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    notes: list[str]


def check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses arrays the page would not understand.

    Raises:
        ValueError: an unknown name, an incomplete group, or sizes that do not agree.
    """
    sizes: dict[tuple[str, str], int] = {}
    for name, array in arrays.items():
        if name not in ARRAYS:
            raise ValueError(f"Unknown array {name!r} for the page. Known: {', '.join(ARRAYS)}.")
        group, axes = name.partition("/")[0], ARRAYS[name].split()
        if array.ndim != len(axes):
            raise ValueError(f"Array {name!r} has shape {array.shape}; expected the axes ({ARRAYS[name]}).")
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault((group, axis), size) != size:
                raise ValueError(f"Array {name!r} has {axis} = {size}, others of {group!r} {sizes[group, axis]}.")
    groups = {name.partition("/")[0] for name in arrays}
    for name in ARRAYS:
        if name.partition("/")[0] in groups and name not in arrays and name not in OPTIONAL:
            raise ValueError(f"Array {name!r} is missing; the page needs the whole group.")


def write_arrays(workdir: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Writes `report_data.npz`, replacing an older one all at once.

    Raises:
        ValueError: as `check_arrays`.
    """
    check_arrays(arrays)
    path = pathlib.Path(workdir) / FILE
    partial = path.with_name(FILE + ".partial")
    with open(partial, "wb") as f:
        np.savez_compressed(f, allow_pickle=False, **dict(arrays))
    os.replace(partial, path)
    return path


def _read_json(path: pathlib.Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except (json.JSONDecodeError, UnicodeDecodeError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} could not be read and is left out.")
        return {}
    return value


def _read_arrays(path: pathlib.Path, notes: list[str]) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name in ARRAYS}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        notes.append(f"The pictures are left out: {path.name} could not be read.")
        return {}
    try:
        check_arrays(arrays)
    except ValueError as error:
        notes.append(f"The pictures are left out: {path.name} could not be used. {error}")
        return {}
    return arrays


def read_run(workdir: str | os.PathLike[str]) -> RunFiles:
    """Everything the page is made of.

    Raises:
        FileNotFoundError: `workdir` is no folder, or holds none of the files.
    """
    workdir = pathlib.Path(workdir)
    names = ("summary.json", "config.json", "metrics.jsonl", FILE)
    if not any((workdir / name).exists() for name in names):
        raise FileNotFoundError(f"No run found in {workdir}: it has none of {', '.join(names)}.")
    notes: list[str] = []
    return RunFiles(
        summary=_read_json(workdir / "summary.json", notes),
        config=_read_json(workdir / "config.json", notes),
        metrics=read_metrics(workdir / "metrics.jsonl"),
        arrays=_read_arrays(workdir / FILE, notes),
        notes=notes,
    )
