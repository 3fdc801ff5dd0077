"""A run whose source has records that cannot be used."""

import json

import numpy as np
import pytest

from vfm_jax.core.errors import TrainingError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.sources import SOURCES
from vfm_jax.train.loop import train


class Damaged:
    """32 images of noise of which three are bad; read one by one, as a folder's are."""

    class_names = ("even", "odd")
    image_shape = (16, 16, 3)

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index in (3, 9, 30):
            raise BadSample(self.name(index), "truncated", "ends early")
        image = np.random.default_rng(index).integers(0, 256, self.image_shape, np.uint8)
        size = np.array(self.image_shape[:2], np.int32)
        return {"image": image, "size": size, "label": np.int32(index % 2), "index": np.int32(index)}

    def name(self, index):
        return f"{index}.png"


@pytest.fixture
def recipe(monkeypatch, tiny_supervised):
    monkeypatch.setitem(SOURCES, "damaged", Damaged)
    normalize = dict(image=dict(ops=(dict(name="normalize", mean=0.5, std=0.25),)))
    return tiny_supervised | dict(
        total_steps=6,
        log_every_steps=1,
        data=dict(name="damaged", batch_size=8, max_bad_ratio=0.1),
        views=normalize,
        schedule=dict(name="constant", base=1e-3),
        eval_views=normalize,
        evals=dict(classification=dict()),
        eval_batch_size=16,
        checkpoints=dict(every_steps=1),
    )


def _ledger(workdir):
    return [json.loads(line) for line in (workdir / "bad_samples.jsonl").read_text().splitlines()]


def test_a_run_goes_on_without_them_and_counts_them(recipe, tmp_path, capsys):
    recipe["checkpoints"] = dict(every_steps=3)  # steps between two saves are what waiting is measured in
    summary = train(recipe, tmp_path / "run")
    assert summary["finished"]
    assert summary["bad_samples"]["reasons"] == {"truncated": 3}
    assert {row["name"] for row in summary["bad_samples"]["records"]} == {"3.png", "9.png", "30.png"}
    parts = {(row["part"], row["index"]) for row in _ledger(tmp_path / "run")}
    assert parts == {(part, index) for part in ("train", "eval train", "eval test") for index in (3, 9, 30)}
    assert len(_ledger(tmp_path / "run")) == len(parts)  # two epochs, and each once
    assert np.isfinite(summary["evaluations"]["pretrained"]["classification/accuracy"])
    out = capsys.readouterr().out
    assert "Left out: " in out
    assert "bad_samples.jsonl: 3 truncated." in out
    assert {"input_bound_ratio", "reading_shares", "verdict"} < summary["stages"][0].keys()


def test_too_many_stop_the_run_with_what_it_has_saved(recipe, tmp_path):
    recipe["data"] |= dict(max_bad_ratio=0.05)
    with pytest.raises(TrainingError, match=r"3 of the 32 records cannot be used, .*=0\.05: 3 truncated"):
        train(recipe, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not summary["finished"]
    assert summary["bad_samples"]["reasons"] == {"truncated": 3}
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints" / "train").iterdir() if path.name.isdigit()]
    assert max(saved, default=0) == summary["steps"]
