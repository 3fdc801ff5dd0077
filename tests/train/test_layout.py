"""Where a run's leaves lie, and what its devices send each other, told before anything runs."""

import json
import math
import pathlib

import jax
import pytest

from vfm_jax import cli
from vfm_jax.cli import load_recipe, override
from vfm_jax.experiment import from_recipe
from vfm_jax.train.layout import layouts
from vfm_jax.train.stages import read_stages

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    ("total_epochs", "None"),
    ("total_steps", "4"),
    ("schedule.warmup_epochs", "0.01"),
    ("data.batch_size", "1024"),  # whose activations are larger than the weights, so that those are gathered
    ("networks.encoder.depth", "1"),
    ("networks.encoder.mlp_dim", "1024"),  # 96 x 1024: large enough to be split
    ("networks.decoder.depth", "1"),
    ("evals", "None"),
    ("baselines", "None"),
)

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs eight devices")


def _recipe(*overrides):
    return override(load_recipe(str(ROOT / "configs/quickstart.py")), (*SMALL, *overrides), "quickstart")


@pytest.fixture(scope="module")
def layout():
    (layout,) = layouts(_recipe(("mesh.data", "2"), ("mesh.fsdp", "4")))
    return layout


def test_every_leaf_of_the_state_is_told_with_its_bytes(layout):
    assert (layout.stage, layout.mesh) == ("train", {"data": 2, "fsdp": 4, "tensor": 1})
    rows = {row["leaf"]: row for row in layout.leaves}
    for kind in ("params", "opt_state/0/mu", "opt_state/0/nu"):
        up = rows[f"{kind}/encoder/transformer/block_0/mlp/up/kernel"]
        assert (up["shape"], up["sharding"], up["bytes per device"]) == ("96 x 1024", "-, fsdp", 96 * 1024 * 4 / 4)
        scale = rows[f"{kind}/encoder/norm/scale"]
        assert (scale["sharding"], scale["bytes per device"]) == ("replicated", 96 * 4)
    kinds = {row["kind"]: row for row in layout.kinds}
    assert set(kinds) == {"params", "opt_state", "batch"}
    assert (kinds["params"]["split"], kinds["opt_state"]["split"]) == (2, 4)
    assert kinds["opt_state"]["bytes"] == 2 * kinds["params"]["bytes"]
    for kind in ("params", "opt_state"):
        whole = sum(
            math.prod(map(int, row["shape"].split(" x "))) * 4
            for row in layout.leaves
            if row["leaf"].startswith(kind)
        )
        assert kinds[kind]["bytes"] == whole
        saved = kinds[kind]["split"] * 96 * 1024 * 4 * 3 / 4
        assert kinds[kind]["bytes per device"] == whole - saved
    assert layout.temporary_bytes > 0


def test_split_parameters_are_gathered_and_their_gradients_reduced(layout):
    """Each of the two is gathered at least once; a gradient of every parameter is reduced, in parts or whole."""
    sizes = {message.num_bytes // message.times for message in layout.messages if message.kind == "all-gather"}
    assert 96 * 1024 * 4 in sizes
    params = next(row for row in layout.kinds if row["kind"] == "params")
    reduced = sum(m.num_bytes for m in layout.messages if m.kind in ("all-reduce", "reduce-scatter"))
    assert reduced >= params["bytes per device"]


@pytest.mark.parametrize("resident", [True, False])
def test_the_batch_that_is_planned_is_the_one_that_comes(resident):
    (stage,) = read_stages(_recipe(("data.resident", str(resident))))
    experiment = from_recipe(stage.recipe)
    with experiment.train_batches(0) as batches:
        batch = next(batches)

    def told(leaf):
        return leaf.shape, leaf.dtype, leaf.sharding

    assert jax.tree.map(told, experiment.abstract_batch()) == jax.tree.map(told, batch)


def test_the_command_tells_it_as_tables_and_as_json(capsys):
    words = [f"--config.{field}={value}" for field, value in SMALL]
    command = ["inspect", f"--config={ROOT}/configs/quickstart.py", "--sharding", "--devices=8", *words]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "train on data=8, fsdp=1, tensor=1" in shown
    assert "What the devices send each other" in shown
    assert "MB per device" in shown
    assert cli.main([*command, "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)
    assert stage["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert {message["kind"] for message in stage["messages"]} >= {"all-reduce"}
    assert cli.main(["inspect", *command[1:3], "--devices=3"]) == 2
    assert "started with 8 devices" in capsys.readouterr().err
