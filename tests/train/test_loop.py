"""The shipped quickstart, shrunk, from config to page; stages, averages, interruptions and losses gone wrong."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from vfm_jax import cli
from vfm_jax.cli import load_recipe, override
from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.loop import evaluate, train

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    ("total_epochs", "None"),
    ("total_steps", "4"),
    ("schedule.warmup_epochs", "0.01"),
    ("log_every_steps", "1"),
    ("data.batch_size", "32"),
    ("networks.encoder.depth", "1"),
    ("networks.decoder.depth", "1"),
)
NO_EVALS = (("evals", "None"), ("baselines", "None"))


def _recipe(*overrides):
    return override(load_recipe(str(ROOT / "configs/quickstart.py")), (*SMALL, *overrides), "quickstart")


def _rows(workdir, kind):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("loop") / "run"
    recipe = _recipe()
    recipe["evals"]["knn"] |= {"every_steps": 2, "every_percent": None}
    return workdir, recipe, train(recipe, workdir)


def test_a_run_leaves_config_metrics_summary_checkpoints_and_page(trained, capsys):
    workdir, _, summary = trained
    assert cli.main(["report", f"--workdir={workdir}"]) == 0
    assert str(workdir / "report.html") in capsys.readouterr().out
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "report.html"} <= set(os.listdir(workdir))
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["finished"]
    assert summary["steps"] == summary["total_steps"] == 4
    assert summary["versions"]["jax"] == jax.__version__
    assert set(summary["evaluations"]) == {"pretrained", "random_init", "raw_pixels"}


def test_measurements_are_written_at_every_step_asked_for(trained):
    workdir, _, _ = trained
    assert [row["step"] for row in _rows(workdir, "train")] == [1, 2, 3, 4]
    assert {"loss", "learning_rate", "gradient_norm"} <= set(_rows(workdir, "train")[0])


def test_an_evaluation_while_training_and_one_at_the_end(trained):
    workdir, _, summary = trained
    rows = _rows(workdir, "eval")
    assert [row["step"] for row in rows] == [2, 4]
    assert "linear_probe/accuracy" not in rows[0]
    assert rows[1]["knn/accuracy"] == summary["evaluations"]["pretrained"]["knn/accuracy"]


def test_evaluating_the_checkpoint_gives_the_figures_of_the_run(trained):
    workdir, recipe, summary = trained
    step, figures = evaluate(recipe, workdir)
    assert step == 4
    assert figures == pytest.approx(summary["evaluations"]["pretrained"], abs=2e-3)


def test_raw_pixels_and_random_weights_differ_from_the_pretrained(trained):
    _, _, summary = trained
    accuracies = {name: figures["linear_probe/accuracy"] for name, figures in summary["evaluations"].items()}
    assert len(set(accuracies.values())) == 3
    assert accuracies["raw_pixels"] > 0.85  # 4,000 digits, 1,000 held out: what a linear classifier gets from pixels


def test_the_averaged_weights_are_kept_and_evaluated(tmp_path):
    recipe = _recipe(*NO_EVALS) | {"ema": {"momentum": 0.5}}
    train(recipe, tmp_path / "run")
    found = restore_params(tmp_path / "run" / "checkpoints" / "train")
    one, other = found.params["encoder"]["norm"]["bias"], found.ema["encoder"]["norm"]["bias"]
    assert one.shape == other.shape
    assert (one != other).any()


def test_stages_hand_over_parameters_by_name_and_say_so(tmp_path, capsys):
    finetune = {
        "name": "finetune",
        "carry": ("^encoder/",),
        "objective": {"name": "supervised"},
        "networks": {"decoder": None, "head": {"name": "linear_head", "num_classes": 10}},
        "optimizer": {"groups": ({"match": "^encoder/", "lr_scale": 0.0}, {"match": ".*"})},
    }
    recipe = _recipe(*NO_EVALS) | {"stages": ({"name": "pretrain", "total_steps": 2}, finetune)}
    summary = train(recipe, tmp_path / "run")
    assert [(row["name"], row["steps"]) for row in summary["stages"]] == [("pretrain", 2), ("finetune", 4)]
    out = capsys.readouterr().out
    assert "From stage pretrain: " in out
    assert "fresh: head/logits" in out
    assert "not used: decoder/" in out
    first, second = (
        restore_params(tmp_path / "run" / "checkpoints" / name).params for name in ("pretrain", "finetune")
    )
    for one, other in zip(jax.tree.leaves(first["encoder"]), jax.tree.leaves(second["encoder"]), strict=True):
        np.testing.assert_array_equal(one, other)  # carried over, then frozen


def test_a_run_starts_from_another_ones_parameters(trained, tmp_path, capsys):
    workdir, _, _ = trained
    train(_recipe(*NO_EVALS, ("total_steps", "1")) | {"start_from": str(workdir)}, tmp_path / "run")
    assert f"From {workdir}: " in capsys.readouterr().out


def test_a_checkpoint_of_another_model_is_refused_with_both_shapes(trained, tmp_path, capsys, monkeypatch):
    workdir, _, _ = trained
    monkeypatch.chdir(ROOT)
    words = [f"--config.{path}={text}" for path, text in (*SMALL, *NO_EVALS, ("networks.encoder.mlp_dim", "48"))]
    assert cli.main(["train", "--config=configs/quickstart.py", f"--workdir={workdir}", *words]) == 2
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) <= 5
    assert "384" in message
    assert "48" in message


def test_a_resume_with_another_batch_size_is_refused(trained):
    workdir, _, _ = trained
    before = {name: (workdir / name).read_bytes() for name in ("config.json", "summary.json", "metrics.jsonl")}
    with pytest.raises(UserError, match="128 examples, 32 a step"):
        train(_recipe(*NO_EVALS, ("total_steps", "6"), ("data.batch_size", "64")), workdir)
    assert before == {name: (workdir / name).read_bytes() for name in before}


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    recipe = _recipe(*NO_EVALS, ("schedule.base", "1e30"), ("checkpoints", "{'every_steps': 1}"))
    with pytest.raises(TrainingError) as caught:
        train(recipe, tmp_path / "run")
    message = str(caught.value)
    assert "Stopped at step" in message
    assert "record" in message or "row" in message or "mnist5k" in message
    assert "Largest gradients: " in message
    assert len(message.splitlines()) <= 5
    noted = next((tmp_path / "run").glob("not_finite_*.json"))
    assert len(json.loads(noted.read_text())["index"]) == 32
    saved = restore_params(tmp_path / "run" / "checkpoints" / "train")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved.params))
    assert not json.loads((tmp_path / "run" / "summary.json").read_text())["finished"]


def test_a_recipe_without_a_length_is_refused(tmp_path):
    with pytest.raises(UserError, match="no length"):
        train(_recipe(*NO_EVALS, ("total_steps", "None")), tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_zero(tmp_path, number):
    words = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    long = (*SMALL, *NO_EVALS, ("total_steps", "1000000"), ("log_every_steps", "5"))
    words += [f"--config.{path}={text}" for path, text in long]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "vfm_jax.cli", *words], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(number)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "goes on from there" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert not summary["finished"]
    assert summary["stopped_by"] == {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert (tmp_path / "run" / "checkpoints" / "train" / str(summary["steps"])).is_dir()
