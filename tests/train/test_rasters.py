"""Images that no photo library reads train like any other: many bands, and floats in metres."""

import json
import pathlib

import numpy as np
import pytest

from vfm_jax import cli
from vfm_jax.cli import load_recipe, override
from vfm_jax.train.loop import train

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    ("total_epochs", "None"),
    ("total_steps", "2"),
    ("log_every_steps", "1"),
    ("data.batch_size", "8"),
    ("data.canvas_size", "64"),
    ("data.split", "all"),
    ("networks.encoder.variant", "mu/16"),
    ("networks.encoder.depth", "1"),
    ("networks.decoder.width", "16"),
    ("networks.decoder.depth", "1"),
    ("networks.decoder.heads", "2"),
    ("evals", "None"),
    ("baselines", "None"),
)
ELEVATION = (("data.value_range", "(-1, 88)"), ("data.dtype", "float32"))  # metres


@pytest.mark.parametrize(
    ("pattern", "channels", "fields"),
    [
        ("L7_*.tif", 6, ()),
        ("olinda_*.tif", 1, ELEVATION),
    ],
)
def test_rasters_train(pattern, channels, fields, shared, tmp_path):
    recipe = load_recipe(f"{ROOT / 'configs/folder.py'}:{shared / 'data/geospatial'}")
    fields = (*SMALL, ("data.pattern", pattern), ("data.channels", str(channels)), *fields)
    recipe = override(recipe, fields, "folder")
    normalize = dict(name="normalize", mean=(0.4,) * channels, std=(0.2,) * channels)
    for views in ("views", "eval_views"):
        *ops, _ = recipe[views]["image"]["ops"]
        recipe[views]["image"]["ops"] = (*({**op, "size": 32} if "size" in op else op for op in ops), normalize)
    train(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert cli.main(["report", f"--workdir={tmp_path / 'run'}"]) == 0
