"""A branch off a trunk ends as one run that was never two: parameters, moments, average, data order."""

import json
import pathlib

import numpy as np
import pytest

from vfm_jax.cli import load_recipe, override
from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.loop import train

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs/quickstart.py"
WORDS = (
    ("total_epochs", "None"),
    ("log_every_steps", "1"),
    ("data.batch_size", "16"),
    ("networks.encoder.depth", "1"),
    ("networks.decoder.depth", "1"),
    ("evals", "None"),
    ("baselines", "None"),
    ("ema", "{'momentum': 0.9}"),
    ("checkpoints", "{'every_steps': 6, 'keep_last': 3}"),
)
TRUNK = dict(name="constant", base=1e-3, warmup_steps=2)
FALLING = dict(name="wsd", base=1e-3, warmup_steps=2, decay_steps=4)


def recipe(steps, schedule, **changes):
    made = override(load_recipe(str(QUICKSTART)), (*WORDS, ("total_steps", str(steps))), "quickstart")
    return made | {"schedule": schedule} | changes


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trunk") / "run"
    train(recipe(10, TRUNK), workdir)
    return workdir


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["learning_rate"]) for row in lines if row["kind"] == "train"}


def test_a_trunk_and_its_branch_are_one_run_that_decays(trunk, tmp_path, capsys):
    train(recipe(14, FALLING), tmp_path / "whole")
    train(recipe(14, FALLING, branch_from=str(trunk)), tmp_path / "branch")
    assert f"Branching off {trunk / 'checkpoints' / 'train'} at step 10." in capsys.readouterr().out
    whole, branch = rows(tmp_path / "whole"), rows(tmp_path / "branch")
    assert list(branch) == [11, 12, 13, 14]
    for step, expected in branch.items():
        np.testing.assert_allclose(whole[step], expected, rtol=1e-6)
    expected, found = (
        restore_params(tmp_path / name / "checkpoints" / "train" / "14") for name in ("whole", "branch")
    )
    for part in ("params", "ema"):
        leaves = named_leaves(getattr(found, part))
        for name, leaf in named_leaves(getattr(expected, part)).items():
            np.testing.assert_allclose(leaves[name], leaf, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_branch_may_leave_at_an_earlier_step_and_goes_on_after_a_stop(trunk, tmp_path, capsys):
    early = recipe(8, TRUNK, branch_from=str(trunk / "checkpoints" / "train" / "6"))
    train(early, tmp_path / "run")
    assert list(rows(tmp_path / "run")) == [7, 8]
    train(early | {"total_steps": 9}, tmp_path / "run")
    assert "Resuming stage train at step 8." in capsys.readouterr().out
    assert list(rows(tmp_path / "run")) == [7, 8, 9]


@pytest.mark.parametrize(
    ("steps", "changes", "message"),
    [
        (10, {}, "stands at step 10, and the branch ends at step 10"),
        (14, dict(start_from="runs/x"), r"both config\.start_from and config\.branch_from"),
        (14, dict(branch_from="nowhere"), r"config\.branch_from: no checkpoint in"),
        (14, dict(optimizer=dict(name="sgd")), "of another model or optimizer"),
    ],
)
def test_a_branch_that_cannot_be_is_refused(trunk, tmp_path, steps, changes, message):
    with pytest.raises(UserError, match=message):
        train(recipe(steps, FALLING, **{"branch_from": str(trunk), **changes}), tmp_path / "run")
