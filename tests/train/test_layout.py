"""Where a run's leaves lie, and what its devices send each other, told before anything runs."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vfm_jax import cli
from vfm_jax.cli import load_recipe, override
from vfm_jax.core.collectives import collectives
from vfm_jax.core.errors import UserError
from vfm_jax.core.hlo import parse
from vfm_jax.core.sharding import batch_sharding, by_examples, make_mesh, shardings, traced_over
from vfm_jax.experiment import from_recipe
from vfm_jax.losses.self_distillation import centered_softmax, dino_loss, sinkhorn
from vfm_jax.nn.heads import DinoHead
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


DEEP = (
    ("data.batch_size", "64"),
    ("networks.encoder.depth", "2"),
    ("networks.encoder.heads", "4"),
    ("networks.encoder.mlp_dim", "192"),
    ("networks.decoder.heads", "4"),
)


def _messages(monkeypatch, *overrides):
    """Kind, devices, times and bytes of every message that comes from the encoder's blocks."""
    monkeypatch.setattr("vfm_jax.core.sharding.FSDP_MIN_SIZE", 64)
    (layout,) = layouts(_recipe(*DEEP, *overrides))
    blocks = [m for m in layout.messages if "ViT)" in m.operation and "/transformer/" in m.operation]
    return [(m.kind, m.group_size, m.times, m.num_bytes // m.times) for m in blocks]


@pytest.mark.parametrize("scan", [True, False])
def test_weights_go_round_and_activations_stay(scan, monkeypatch):
    found = _messages(monkeypatch, ("mesh.data", "2"), ("mesh.fsdp", "4"), ("networks.encoder.scan", str(scan)))
    gathered = {size for kind, _, _, size in found if kind == "all-gather"}
    # Of the attention each is 96 x 96: queries, keys and values go one by one.
    kernels, biases = {96 * 96 * 4, 96 * 192 * 4}, {192 * 4, 96 * 4}
    assert gathered == kernels | biases


@pytest.mark.parametrize("scan", [True, False])
def test_a_block_over_the_tensor_axis_sums_twice_and_gathers_nothing(scan, monkeypatch):
    """After the attention and after the MLP; and in the backward pass before them."""
    found = _messages(monkeypatch, ("mesh.data", "2"), ("mesh.tensor", "4"), ("networks.encoder.scan", str(scan)))
    assert {kind for kind, *_ in found} == {"all-reduce"}
    sums = [times for _, group, times, size in found if group == 4]
    assert sum(sums) == 2 * 4  # blocks, sums of each


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


def test_a_layout_that_cannot_be_is_refused_before_anything_is_made():
    def build(**fields):
        (stage,) = read_stages(_recipe() | fields)
        return from_recipe(stage.recipe)

    with pytest.raises(UserError, match=r"mesh\.tensor is 4, which does not divide dimension \d of .*/block_0/"):
        build(mesh={"data": 2, "tensor": 4})  # of three heads
    with pytest.raises(UserError, match=r"mesh\.tensor is 2, but no parameter of these networks is split over it"):
        build(mesh={"data": 4, "tensor": 2}, sharding=((".*", "fsdp"),))
    for rule in ("fsdp", (".*",)):
        with pytest.raises(UserError, match=r"is no rule; expected \(regex over leaf names, layout, \.\.\.\)"):
            build(sharding=(rule,))


def test_what_lies_on_the_hosts_is_named_and_told(monkeypatch):
    (stage,) = read_stages(_recipe() | {"offload": ("opt_state",)})
    (layout,) = layouts(stage.recipe)
    kinds = {row["leaf"].split("/")[0]: row["sharding"] for row in layout.leaves}
    assert kinds == {"params": "replicated", "opt_state": "replicated (host)"}
    of_kind = {row["kind"]: row for row in layout.kinds}["opt_state"]
    assert of_kind["bytes"] > 0 and of_kind["bytes per device"] == 0
    with pytest.raises(UserError, match=r"'params' in config\.offload.*Known: ema, opt_state, profiles"):
        from_recipe(stage.recipe | {"offload": ("params",)})
    monkeypatch.setattr("vfm_jax.experiment.has_host_memory", lambda mesh: False)
    with pytest.raises(UserError, match=r"config\.offload: JAX keeps nothing in the host's memory for a cpu"):
        from_recipe(stage.recipe)


def test_logits_of_prototypes_are_gathered_nowhere():
    """Similarities, their softmax and Sinkhorn's scaling, where the kernel is split by prototypes."""
    mesh, (images, width, prototypes) = make_mesh(data=2, fsdp=2, tensor=2), (32, 24, 4096)
    head = DinoHead(prototypes, hidden_dim=16, bottleneck_dim=8, num_layers=2)

    def loss(params, x):
        logits = head.apply({"params": params}, by_examples(x))
        targets = sinkhorn(logits[:, 0], 0.1)[:, None]
        return dino_loss(logits, targets, 0.1, same_view=True) + dino_loss(
            logits, centered_softmax(logits[:, :1], jnp.mean(logits, (0, 1)), 0.1), 0.1, same_view=True
        )

    x = jax.ShapeDtypeStruct((images, 2, width), jnp.float32, sharding=batch_sharding(mesh))
    params = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros(x.shape))["params"]
    layout = shardings(params, mesh)
    assert layout["prototypes"]["kernel"].spec == P(None, "tensor")
    params = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), params, layout)
    step = jax.jit(traced_over(mesh, jax.grad(loss)), out_shardings=layout)
    sent = collectives(parse(step.lower(params, x).compile().as_text()))
    assert sent
    of_one_device = images * 2 * prototypes * 4 // 8  # logits of its own images and prototypes
    assert max(one.num_bytes // one.times for one in sent) < of_one_device
