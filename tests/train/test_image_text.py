"""Images with texts through the whole program: one vocabulary from the first step to the last evaluation."""

import json

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.experiment import build_experiment
from vfm_jax.train.loop import evaluate, train


def _recipe(**changes):
    ops = (dict(name="resize", size=16), dict(name="normalize", mean=0.45, std=0.25))
    small = dict(width=16, depth=1, heads=2, mlp_dim=24)
    return {
        "total_steps": 2,
        "log_every_steps": 1,
        "data": dict(
            name="photo_pairs",
            crop_size=48,
            batch_size=16,
            tokenizer=dict(name="learned", vocabulary=560),
            text_length=20,
        ),
        "views": dict(image=dict(ops=ops)),
        "networks": dict(
            encoder=dict(name="vit", variant="mu/8", pooling="mean", projection=12, **small),
            text_encoder=dict(name="text", variant="mu", vocabulary=560, length=20, projection=12, **small),
        ),
        "objective": dict(name="clip"),
        "optimizer": dict(name="adamw"),
        "schedule": dict(name="constant", base=1e-3),
        "eval_data": dict(test=dict(split="test")),
        "eval_views": dict(image=dict(ops=ops)),
        "evals": dict(retrieval=dict()),
        "baselines": ("random_init",),
    } | changes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pairs")
    return workdir, train(_recipe(), workdir)


def test_a_run_ends_with_recall_beside_that_of_random_weights(run):
    workdir, summary = run
    assert summary["finished"]
    for figures in (summary["evaluations"]["pretrained"], summary["evaluations"]["random_init"]):
        for way in ("image_to_text", "text_to_image"):
            found = [figures[f"retrieval/{way}_recall_at_{k}"] for k in (1, 5, 10)]
            assert 0 <= found[0] <= found[1] <= found[2] <= 1
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert all(np.isfinite(row["loss"]) and 0 < row["temperature"] <= 1 for row in trained)
    assert all("representation/alignment" in row for row in trained)  # of images and their texts


def test_the_vocabulary_lies_beside_the_run_and_stays_its_own(run):
    workdir, _ = run
    kept = (workdir / "tokenizer_merges.txt").read_text()
    assert kept.startswith("#version")
    step, figures = evaluate(_recipe(), workdir)
    assert step == 2
    ways = ("image_to_text", "text_to_image")
    assert set(figures) == {f"retrieval/{way}_recall_at_{k}" for way in ways for k in (1, 5, 10)}
    other = _recipe()
    other["data"]["tokenizer"] = dict(name="learned", vocabulary=530)
    with pytest.raises(UserError, match="captions or tokenizer have changed"):
        evaluate(other, workdir)
    assert (workdir / "tokenizer_merges.txt").read_text() == kept


def test_evaluation_reads_texts_by_the_training_vocabulary():
    experiment = build_experiment(**_recipe())
    assert experiment.eval_sources["test"].tokenizer is experiment.source.tokenizer


def test_a_text_tower_without_room_for_the_vocabulary_is_refused():
    recipe = _recipe()
    recipe["networks"]["text_encoder"]["vocabulary"] = 520
    with pytest.raises(UserError, match=r"text_encoder\.vocabulary is 520, but the tokenizer has 560 ids"):
        build_experiment(**recipe)


def test_texts_are_asked_for_where_the_data_has_none():
    recipe = _recipe(evals={}, baselines=())
    recipe["data"] = dict(name="photos", crop_size=48, batch_size=16)
    with pytest.raises(UserError, match="this data has none"):
        build_experiment(**recipe)
