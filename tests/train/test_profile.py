"""Steps that are traced, and no others."""

import gzip
import json

import pytest

from tests.train.mnist import SUPERVISED
from vfm_jax import cli
from vfm_jax.core.errors import UserError
from vfm_jax.train.loop import train
from vfm_jax.train.profile import read_steps

RECIPE = SUPERVISED | dict(
    data=SUPERVISED["data"] | dict(batch_size=8),
    total_steps=6,
    checkpoints=dict(every_steps=3),
)


def _traced(workdir):
    """Numbers of the steps in each trace."""
    traces = []
    for path in sorted(workdir.rglob("*.trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        steps = [event for event in events if event.get("name") == "train"]
        traces.append([int(event["args"]["step_num"]) for event in steps])
    return traces


def test_a_trace_has_the_steps_asked_for_counted_over_the_whole_run(tmp_path, capsys):
    train(RECIPE | {"total_steps": 3}, tmp_path, profile=(2, 3))
    assert _traced(tmp_path / "profile") == [[2, 3]]
    assert f"A trace of 2 steps is in {tmp_path}/profile" in capsys.readouterr().out
    train(RECIPE, tmp_path, profile=(3, 5))  # goes on from 3
    assert sorted(_traced(tmp_path / "profile")) == [[2, 3], [4, 5]]


@pytest.mark.parametrize("text", ["10", "5:4", "0:3", "a:b", "1:2:3", "-1:2"])
def test_other_words_than_two_steps_are_refused_before_the_recipe_is_read(text, capsys):
    assert cli.main(["train", "--config=missing.py", "--workdir=w", f"--profile={text}"]) == 2
    assert f"--profile={text}: expected FIRST:LAST" in capsys.readouterr().err
    assert read_steps("10:15") == (10, 15)


def test_steps_that_the_run_will_not_take_are_not_traced(tmp_path, capsys):
    with pytest.raises(UserError, match=r"--profile=5:7 goes beyond the run, which has 6 steps"):
        train(RECIPE, tmp_path, profile=(5, 7))
    assert not list(tmp_path.iterdir())
    train(RECIPE | {"total_steps": 3}, tmp_path)
    train(RECIPE, tmp_path, profile=(1, 3))
    assert "No trace: the run stands at step 3, behind --profile=1:3." in capsys.readouterr().out
    assert not (tmp_path / "profile").exists()
