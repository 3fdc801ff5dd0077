"""What is made of a source's images, and where they are held: the same run, whichever it is."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from vfm_jax.cli import load_recipe, override
from vfm_jax.core.errors import UserError
from vfm_jax.experiment import from_recipe
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.loop import train
from vfm_jax.train.record import Watch
from vfm_jax.train.stages import read_stages

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    ("total_epochs", "None"),
    ("total_steps", "4"),
    ("schedule.warmup_epochs", "0.01"),
    ("log_every_steps", "1"),
    ("checkpoints.every_steps", "2"),
    ("data.batch_size", "32"),
    ("networks.encoder.depth", "1"),
    ("networks.decoder.depth", "1"),
    ("evals", "None"),
    ("baselines", "None"),
)


def _recipe(**data):
    recipe = override(load_recipe(str(ROOT / "configs/quickstart.py")), SMALL, "quickstart")
    recipe["data"] |= data
    return recipe


def _built(recipe):
    return from_recipe(read_stages(recipe)[0].recipe)


def _losses(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["gradient_norm"]) for row in rows if row["kind"] == "train"]


class _Stopped(Exception):
    pass


@pytest.mark.slow
def test_a_run_may_be_resumed_with_its_images_on_the_devices(tmp_path, monkeypatch):
    """Four steps from the host are two from the host, an end, and two more from the devices: bit for bit."""
    train(_recipe(resident=False), tmp_path / "host")
    read, stepped = Watch._read, []

    def stop(self, *args):
        read(self, *args)
        stepped.append(self.steps_done)
        if self.steps_done == 3:
            raise _Stopped

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "_read", stop)
        with pytest.raises(_Stopped):
            train(_recipe(resident=False), tmp_path / "run")
    train(_recipe(resident=True), tmp_path / "run")
    assert _losses(tmp_path / "run") == _losses(tmp_path / "host")
    one, other = (restore_params(tmp_path / run / "checkpoints" / "train" / "4").params for run in ("host", "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_small_arrays_in_memory_are_put_on_the_devices_unasked():
    assert _built(_recipe()).resident
    assert not _built(_recipe(resident=False)).resident


@pytest.fixture
def images(tmp_path):
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8)
        path = tmp_path / "images" / f"c{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return str(tmp_path / "images")


def _of_folder(path, **data):
    recipe = _recipe()
    recipe["data"] = dict(name="folder", path=path, canvas_size=56, batch_size=8, **data)
    recipe["views"] = dict(image=dict(ops=(dict(name="normalize", mean=0.5, std=0.5),)))
    recipe["networks"]["encoder"] |= dict(image_size=28) if "image_size" in recipe["networks"]["encoder"] else {}
    return recipe


def test_a_crop_on_the_host_makes_batches_that_fill_their_canvas(images):
    experiment = _built(_of_folder(images, crop=dict(size=28)))
    assert not experiment.resident
    assert experiment.sample["image"].shape == (2, 28, 28, 3)
    with experiment.train_batches(0) as batches:
        batch = next(batches)
    assert batch["image"].shape == (8, 28, 28, 3)
    assert "size" not in batch
    assert batch.keys() == experiment.sample.keys()
    with experiment.train_batches(3) as later, experiment.train_batches(2) as before:
        next(before)
        np.testing.assert_array_equal(next(later)["image"], next(before)["image"])


def test_evaluators_see_whole_photos(images):
    recipe = _of_folder(images, crop=dict(size=28))
    recipe["eval_data"] = {}
    recipe["evals"] = dict(knn=dict(name="knn", num_neighbors=2))
    recipe["eval_views"] = dict(image=dict(ops=(dict(name="resize", size=28), *recipe["views"]["image"]["ops"])))
    recipe["eval_batch_size"] = 8
    experiment = _built(recipe)
    batch = next(experiment.eval_batches("train"))
    assert batch["image"].shape == (8, 56, 56, 3)
    assert batch["size"].max() > 28


def test_a_cache_serves_training(images, tmp_path):
    experiment = _built(_of_folder(images, cache=dict(path=str(tmp_path / "cache"))))
    plain = _built(_of_folder(images))
    for _ in range(2):
        with experiment.train_batches(0) as ours, plain.train_batches(0) as theirs:
            np.testing.assert_array_equal(next(ours)["image"], next(theirs)["image"])
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dict(crop=dict(size=28), resident=True), "both crop and resident"),
        (dict(crop=dict(size=28), cache=dict(path="somewhere")), "both crop and cache"),
        (dict(crop=dict(sise=28)), "Unknown field config.data.crop.sise.*size"),
        (dict(crop=dict(scale=(0.1, 1.0))), "config.data.crop lacks size"),
        (dict(cache=dict(max_gigabytes=1)), "config.data.cache lacks path"),
        (dict(resident="yes"), "config.data.resident is 'yes'"),
    ],
)
def test_what_does_not_go_together_is_refused(images, data, words):
    with pytest.raises(UserError, match=words):
        _built(_of_folder(images, **data))


def test_more_than_the_devices_have_is_refused_before_it_is_read(images, monkeypatch):
    monkeypatch.setattr("vfm_jax.experiment.device_memory", lambda devices: 1e5)
    with pytest.raises(UserError, match=r"16 images of 56 x 56 x 3 take 0\.000151 GB .* which has 0\.0001 GB"):
        _built(_of_folder(images, resident=True))
    assert not _built(_recipe()).resident
