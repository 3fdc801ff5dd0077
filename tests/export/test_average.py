"""An average of a width that was not tracked, from a run's checkpoints."""

import pathlib

import numpy as np
import pytest

from vfm_jax.cli import load_recipe, override
from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.export.average import average_checkpoints
from vfm_jax.optim.posthoc import power_momentum
from vfm_jax.train.checkpoint import restore_params, restore_profiles
from vfm_jax.train.loop import train

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs/quickstart.py"
WORDS = (
    ("total_epochs", "None"),
    ("total_steps", "6"),
    ("schedule.warmup_epochs", "0.01"),
    ("data.batch_size", "16"),
    ("networks.encoder.depth", "1"),
    ("networks.decoder.depth", "1"),
    ("evals", "None"),
    ("baselines", "None"),
    ("checkpoints", "{'every_steps': 1, 'keep_last': 9}"),
)


def recipe(**changes):
    return override(load_recipe(str(QUICKSTART)), WORDS, "quickstart") | changes


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("average") / "run"
    train(recipe(posthoc_ema={"sigma_rel": (0.05, 0.1)}), workdir)
    return workdir / "checkpoints" / "train"


def test_a_run_tracks_the_power_profiles_of_its_parameters(saved):
    states = [named_leaves(restore_params(saved / str(step)).params) for step in range(1, 7)]
    profiles, _, _ = restore_profiles(saved / "6")
    for name, exponent in (("profile_0", 16.97), ("profile_1", 6.94)):
        found = named_leaves(profiles[name])
        for leaf in ("encoder/patch_embedding/kernel", "decoder/mask_token"):
            expected = 0.0
            for step, state in enumerate(states):
                momentum = float(power_momentum(step, exponent))
                expected = momentum * expected + (1 - momentum) * state[leaf]
            np.testing.assert_allclose(found[leaf], expected, rtol=1e-3, atol=1e-6)


def test_a_tracked_width_is_found_again_and_training_starts_from_it(saved, tmp_path, capsys):
    assert average_checkpoints(saved, 0.1, tmp_path / "averaged") == 6
    found, expected = restore_params(tmp_path / "averaged"), restore_profiles(saved / "6")[0]["profile_1"]
    for name, leaf in named_leaves(expected).items():
        np.testing.assert_allclose(named_leaves(found.params)[name], leaf, rtol=1e-5, atol=1e-6)
    assert found.meta["averaged"] == 0.1
    train(recipe(total_steps=2, start_from=str(tmp_path / "averaged")), tmp_path / "run")
    assert f"From {tmp_path / 'averaged'}: " in capsys.readouterr().out


def test_a_run_that_tracked_nothing_is_refused(saved, tmp_path):
    train(recipe(total_steps=2), tmp_path / "run")
    with pytest.raises(UserError, match="has no profiles"):
        average_checkpoints(tmp_path / "run" / "checkpoints" / "train", 0.1, tmp_path / "averaged")
    with pytest.raises(UserError, match="up to step 0"):
        average_checkpoints(saved, 0.1, tmp_path / "averaged", step=0)
