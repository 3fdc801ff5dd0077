"""A run on a source made of sources: to the end, and stopped in the middle to the same end."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

from vfm_jax.experiment import from_recipe
from vfm_jax.train.loop import train
from vfm_jax.train.record import Watch

STEPS, BATCH = 9, 16


@pytest.fixture
def recipe(tmp_path, tiny_supervised):
    """Two folders of other sizes and numbers, the smaller one weighted up and balanced over its classes."""
    noise = np.random.default_rng(0)
    for part, side, counts in (("large", 16, (20, 16)), ("small", 12, (2, 6))):
        for label, count in zip("ab", counts, strict=True):
            for i in range(count):
                file = tmp_path / part / label / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 256, (side, side, 3), np.uint8)).save(file)
    large, small = (
        dict(name="folder", path=str(tmp_path / part), canvas_size=side)
        for part, side in (("large", 16), ("small", 12))
    )
    members = (large | dict(weight=0.75), dict(name="balanced", source=small, weight=0.25))
    return tiny_supervised | dict(
        total_steps=STEPS,
        log_every_steps=1,
        data=dict(name="mixture", members=members, batch_size=BATCH, threads=2),
        views=dict(image=dict(ops=(dict(name="flip"), dict(name="normalize", mean=0.5, std=0.25)))),
        checkpoints=dict(every_steps=100),
    )


def _outcome(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((workdir / "checkpoints" / "train" / str(STEPS) / "manifest.json").read_text())["content"]
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows], manifest["leaves"]


def test_a_run_on_a_mixture_goes_on_as_if_never_stopped(recipe, tmp_path, monkeypatch):
    source = from_recipe(recipe).source
    assert len(source) == 48  # 36 of the large folder are three quarters
    names = [source.name(i) for i in range(48)]
    shares = [sum(f"/{part}" in name for name in names) for part in ("large/", "small/a", "small/b")]
    assert shares == [36, 6, 6]
    assert train(recipe, tmp_path / "whole")["finished"]

    stepped = Watch.stepped

    def stop(self, *args):
        stepped(self, *args)
        if self.steps_done == 4:  # within the second epoch
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Watch, "stepped", stop)
    stopped = train(recipe, tmp_path / "parts")
    assert (stopped["finished"], stopped["stopped_by"]) == (False, "SIGTERM")
    monkeypatch.undo()
    assert train(recipe, tmp_path / "parts")["finished"]
    assert _outcome(tmp_path / "parts") == _outcome(tmp_path / "whole")
