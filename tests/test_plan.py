"""The plan of a run: targets by name, figures that add up, what makes it fit; and the TPU's own compiler."""

import importlib.util
import json
import pathlib

import jax
import pytest

from vfm_jax import cli
from vfm_jax.cli import load_recipe, override
from vfm_jax.core.chips import CHIPS
from vfm_jax.core.collectives import Collective
from vfm_jax.core.errors import UserError
from vfm_jax.data.sources.blank import size_of
from vfm_jax.experiment import blank_source, from_recipe
from vfm_jax.plan import Target, find_target, plan
from vfm_jax.plan.fit import changes_that_fit, largest_batch
from vfm_jax.plan.stage import memory_exceeded, step_time
from vfm_jax.plan.words import as_json
from vfm_jax.train.layout import trace_step
from vfm_jax.train.stages import read_stages
from vfm_jax.train.step import step_flops

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
    ("networks.encoder.depth", "2"),
    ("networks.encoder.width", "64"),
    ("networks.encoder.mlp_dim", "128"),
    ("networks.encoder.heads", "2"),
    ("data.batch_size", "32"),
    ("evals", "None"),
)


def _recipe(location, *overrides):
    return override(load_recipe(str(ROOT / "configs" / location)), overrides, location)


def _on(num_chips, chip="h100", **changes):
    devices = jax.devices()[:num_chips]
    return Target("test", CHIPS[chip], num_chips, 1, devices, "tpu", "it is a test")._replace(**changes)


@pytest.fixture(scope="module")
def planned():
    recipe = _recipe("supervised/vit_s16_in1k.py", *SMALL, ("total_epochs", "3"))
    (one,) = plan(recipe, _on(2))
    return one


def test_data_that_are_not_here_are_known_by_their_size(planned):
    assert "planned with 1,268,355 examples" in planned.data  # 99 % of ImageNet-1k
    assert planned.plan.total_steps == 3 * 1_268_355 // 32


def test_the_figures_add_up(planned):
    found = planned.plan
    per_device = {row["kind"]: row["bytes per device"] for row in found.kinds}
    assert per_device["params"] == pytest.approx(4 * found.num_parameters)
    assert per_device["opt_state"] == pytest.approx(
        6 * found.num_parameters, rel=1e-3
    )  # bfloat16 and float32 moments
    assert found.checkpoint_bytes == pytest.approx(10 * found.num_parameters, rel=1e-3)
    assert found.peak_bytes >= found.state_bytes
    assert found.fits
    sent = sum(m.num_bytes for m in found.messages if m.kind == "all-reduce")
    assert sent == pytest.approx(4 * found.num_parameters, rel=0.1)  # the gradients, and little else
    assert found.time.best == max(found.time.arithmetic, found.time.memory, found.time.messages)
    peak = 2 * CHIPS["h100"].matmul
    assert found.mfu[0] == pytest.approx(found.model_flops * found.batch_size / peak / found.time.best)
    assert json.loads(json.dumps(as_json(planned._replace(largest=lambda: None))))["batch_size"] == 32


def test_the_models_operations_are_those_of_the_compiler_without_loops():
    """XLA counts elementwise operations too, which are few beside products of this width."""
    changes = {"networks.encoder.width": "256", "networks.encoder.mlp_dim": "1024", "data.batch_size": "8"}
    recipe = _recipe("supervised/vit_s16_in1k.py", *(dict(SMALL) | changes).items(), ("total_steps", "5"),
                     ("schedule.warmup_steps", "1"), ("total_epochs", "None"))  # fmt: skip
    (stage,) = read_stages(recipe)
    experiment = from_recipe(stage.recipe, devices=jax.devices()[:1], source=blank_source(stage.recipe))
    step = trace_step(experiment)
    ours = step_flops(experiment.objective, experiment.views, step.state, step.batch)

    def gradient(params, extra, views, key, number):
        def loss(params):
            outputs, after = experiment.objective.forward(params, extra, views, key, number)
            return experiment.objective.criterion(params, after, outputs, number)[0]

        return jax.grad(loss)(params)

    key = jax.random.key(0)
    views = jax.eval_shape(experiment.views, key, step.batch)
    lowered = jax.jit(gradient).lower(step.state.params, step.state.extra, views, key, step.state.step)
    counted = lowered.compile().cost_analysis()["flops"]
    assert ours.total == pytest.approx(counted, rel=0.05)
    # By hand: patches, two blocks, head; the gradient twice that, but none to the images.
    tokens, width, hidden = 196, 256, 1024
    patches = tokens * 16 * 16 * 3 * width
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    head = width * 384 + 384 * 1000
    assert ours.total == 8 * 2 * (2 * patches + 3 * (2 * block + head))


def test_a_step_takes_the_longest_of_three_or_all_of_them():
    chip = CHIPS["v5e"]
    messages = [
        Collective("all-reduce", 4, "", 1, 400),
        Collective("all-gather", 4, "", 1, 400),
        Collective("collective-permute", 4, "", 1, 400),
    ]
    time = step_time(chip, 1.0, flops=chip.matmul, traffic=2 * chip.memory_bandwidth, messages=messages, num_hosts=4)
    assert (time.arithmetic, time.memory, time.limit, time.best) == (1.0, 2.0, "memory", 2.0)
    sent = 2 * 300 + 300 + 400
    assert time.messages == pytest.approx(sent / chip.link_bandwidth)
    assert time.worst == pytest.approx(
        1 / 0.8 + 2 + 2 * time.messages
    )  # 2 of the 4 links of a torus of two dimensions
    assert step_time(chip, 2.0, chip.matmul, 0.0, [], 1).arithmetic == 2.0  # of each of two devices


def test_hosts_of_gpus_send_through_their_network():
    chip, message = CHIPS["h100"], Collective("all-gather", 16, "", 1, 16e9)
    within, across = (step_time(chip, 1.0, 0.0, 0.0, [message], hosts).messages for hosts in (1, 2))
    assert (within, across) == (15e9 / chip.link_bandwidth, 15e9 / chip.network_bandwidth)


def test_jax_takes_a_part_of_a_gpus_memory(monkeypatch):
    target = _on(2, "h200", memory_share=0.5)
    assert target.device_memory == CHIPS["h200"].memory / 2
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "all")
    with pytest.raises(UserError, match=r"XLA_CLIENT_MEM_FRACTION='all' is no number. .*: 0\.92"):
        find_target("h100:2")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (840.81G) "
            "exceeds available HBM (15.75G).",
            (840.81 * 2**30, None, 15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.90G "
            "of 15.75G hbm. Exceeded hbm capacity by 10.15G.",
            (None, 25.9 * 2**30, 15.75 * 2**30),
        ),
        ("INVALID_ARGUMENT: something else (1G)", None),
    ],
)
def test_a_compiler_that_gives_up_says_what_it_needed(said, found):
    assert memory_exceeded(said) == found


def _stage():
    return read_stages(_recipe("supervised/vit_s16_in1k.py", *SMALL))[0]


def _attempts(planned, peak_of):
    """(what was tried, an attempt whose peak is `peak_of` the recipe)."""
    tried = []

    def attempt(stage):
        tried.append(stage.recipe)
        size = stage.recipe["data"]["batch_size"]
        return planned.plan._replace(peak_bytes=peak_of(stage.recipe), batch_size=size, memory_bytes=1000.0)

    return tried, attempt


def test_changes_are_tried_from_the_cheapest_on_and_kept_until_it_fits(planned):
    tried, attempt = _attempts(
        planned, lambda recipe: 2000.0 if recipe["networks"]["encoder"]["remat"] != "full" else 1
    )
    found = list(changes_that_fit(_stage(), planned.plan, attempt))
    assert [one.plan.fits for one in found] == [False, False, True]
    assert found[0].settings == ("--config.mesh.data=1", "--config.mesh.fsdp=2")  # the moments are bfloat16 already
    scan = "--config.networks.encoder.scan=True"
    assert found[1].settings == (*found[0].settings, "--config.networks.encoder.remat=dots", scan)
    assert found[2].settings == (*found[0].settings, scan, "--config.networks.encoder.remat=full")
    assert tried[-1]["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    # Each setting is one that the command line takes.
    written = [tuple(setting.removeprefix("--config.").split("=")) for setting in found[-1].settings]
    assert (
        read_stages(_recipe("supervised/vit_s16_in1k.py", *SMALL, *written))[0].recipe["networks"]
        == tried[-1]["networks"]
    )


def test_a_change_that_cannot_be_made_is_left_out_of_the_next(planned):
    tried, attempt = _attempts(planned, lambda recipe: 2000.0)

    def refusing(stage):
        if stage.recipe["mesh"]["fsdp"] > 1:
            raise UserError("does not divide")
        return attempt(stage)

    found = list(changes_that_fit(_stage(), planned.plan, refusing))
    dots = ("--config.networks.encoder.remat=dots", "--config.networks.encoder.scan=True")
    assert found[0].settings == dots and len(found) == len(tried) == 5


def test_where_nothing_helps_all_is_tried(planned):
    tried, attempt = _attempts(planned, lambda recipe: 2000.0)
    found = list(changes_that_fit(_stage(), planned.plan, attempt))
    assert not any(one.plan.fits for one in found) and len(found) == len(tried) == 6
    assert found[-1].settings[-1] == "--config.num_micro_batches=8"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (200.0, (155, 164)),  # 164 would fit
        (60.0, (40, 44)),  # smaller than the recipe's
        (5000.0, (960, 960)),  # nearly all of the data
        (15.0, None),  # less than the state
    ],
)
def test_the_largest_batch_is_compiled_and_not_guessed(planned, limit, expected):
    """A state of 20 bytes, and 0.9 for each example; after the hundredth 0.5 more, so that no line tells it all."""

    def peak(size):
        return 20 + 0.9 * size + 0.5 * max(size - 100, 0)

    kinds = [{"kind": "params", "bytes per device": 20}]
    plan = planned.plan._replace(kinds=kinds, memory_bytes=limit, peak_bytes=peak(64), batch_size=64)
    attempted = []

    def attempt(stage):
        attempted.append(stage.recipe["data"]["batch_size"])
        return plan._replace(peak_bytes=peak(attempted[-1]), batch_size=attempted[-1])

    found = largest_batch(_stage(), plan, attempt, num_examples=970)
    assert len(attempted) <= 3
    if expected is None:
        assert found is None
    else:
        assert found.fits and expected[0] <= found.batch_size <= expected[1]
        assert found.batch_size in attempted


def test_sizes_of_splits_are_those_of_tfds():
    def size(split, dataset="imagenet2012:5.1.0"):
        return size_of({"name": "tfds", "dataset": dataset, "split": split})

    assert (size("train"), size("train[:1000]"), size("train[1000:]")) == (1_281_167, 1000, 1_280_167)
    assert (size("train[:99%]"), size("train[99%:]")) == (1_268_355, 12_812)
    assert size("validation") is None and size("train", "somebodys_own") is None
    assert size("train", "imagenette/160px-v2") == 9_469


def test_without_a_size_an_epoch_has_no_length():
    recipe = read_stages(_recipe("folder.py:nowhere"))[0].recipe
    with pytest.raises(UserError, match=r"an epoch has no length. Say it with --examples=N"):
        blank_source(recipe)
    assert len(blank_source(recipe, 77)) == 77


def test_a_batch_that_the_method_refuses_ends_the_search(planned):
    def attempt(stage):
        raise UserError("groups must divide it")

    found = planned.plan._replace(memory_bytes=1000.0, peak_bytes=100.0, batch_size=64, kinds=[])
    assert largest_batch(_stage(), found, attempt, 10_000) is found
    assert largest_batch(_stage(), found._replace(peak_bytes=2000.0), attempt, 10_000) is None


def test_a_larger_batch_is_tried_for_as_many_steps(planned):
    """So that a warm-up is not longer than the run, which has nothing to do with memory."""
    found = planned.plan._replace(memory_bytes=100.0, peak_bytes=10.0, batch_size=32, kinds=[])
    tried = []
    stage = _stage()._replace(recipe={**_stage().recipe, "total_epochs": 3})
    largest_batch(stage, found, lambda stage: tried.append(stage.recipe) or found, 10_000)
    assert (tried[0]["total_steps"], tried[0]["total_epochs"]) == (planned.plan.total_steps, None)
    assert tried[0]["data"]["batch_size"] == 288  # ten times the memory: 313, in whole 32s


@pytest.mark.parametrize("on", ["v5e", "v5e:8", "v5e:4x4x4x4", "h10:8", "h100:2x2", "gpu", "v5e:0x4"])
def test_devices_that_are_none_are_refused(on):
    with pytest.raises(UserError, match=r"--on='.*v5e:4x4, v5p:8x8x8"):
        find_target(on)


def test_gpus_fill_their_hosts_evenly():
    with pytest.raises(UserError, match=r"--on='h100:9': 9 do not go evenly into 2 hosts of at most 8"):
        find_target("h100:9")


def test_the_command_says_what_it_needs(capsys):
    assert cli.main(["plan", "configs/quickstart.py"]) == 2
    assert "--on=v5e:4x4" in capsys.readouterr().err


needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs the GPUs' compiler: pip install 'vfm-jax[cuda]' (4.5 GB)",
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU's compiler: scripts/test.sh --plan, or pip install 'vfm-jax[plan]'",
)
ON_TPUS = {
    "supervised/vit_s16_in1k.py": ("v5e:4x4", ()),
    "masked/mae_vit_b16_in1k.py": (
        "v5p:2x2x1",
        (("networks.decoder.depth", "1"), ("mesh.data", "2"), ("mesh.fsdp", "2")),
    ),
}


def _planned_by_its_compiler(on, recipe, capfd):
    """A stage's plan, and the chip, with what holds of each."""
    target = find_target(on)
    (one,) = plan(recipe, target)
    found = one.plan
    assert not capfd.readouterr().err  # the compilers have much to say, and nothing for the user
    assert not target.estimated and found.fits
    assert found.state_bytes < found.peak_bytes
    assert found.traffic_bytes > sum(row["bytes per device"] for row in found.kinds)
    assert 0 < found.mfu[1] < found.mfu[0] < 1
    return found, CHIPS[on.split(":")[0]]


@pytest.mark.plan
@needs_libtpu
@pytest.mark.parametrize("location", ON_TPUS)
def test_a_recipe_is_planned_by_the_tpus_own_compiler(location, capfd):
    on, changes = ON_TPUS[location]
    recipe = _recipe(location, *SMALL, ("networks.encoder.depth", "1"), *changes)
    found, chip = _planned_by_its_compiler(on, recipe, capfd)
    assert found.num_hosts == max(1, found.num_chips // 4)
    assert found.memory_bytes == chip.memory
    assert found.peak_bytes < 1e9
    assert "all-reduce" in {message.kind for message in found.messages}


ON_GPUS = {
    # 196 tokens, and 197 of them: with a class token
    "supervised/vit_s16_in1k.py": ("h100:16", ()),
    "self_distillation/dino_vit_s16_in1k.py": ("a100:8", (("networks.encoder.scan", "True"),)),
    "self_distillation/dinov3_vit_l16_in1k.py": ("h100:8", (("data.batch_size", "128"),)),  # rotary
    "contrastive/simclr_r50_in1k.py": ("h200:1", ()),
}


@pytest.mark.plan
@needs_cuda
@pytest.mark.parametrize("location", ON_GPUS)
def test_a_recipe_is_planned_by_the_gpus_own_compiler(location, capfd):
    on, changes = ON_GPUS[location]
    small = SMALL if "r50" not in location else (("data.batch_size", "32"), ("evals", "None"))
    found, chip = _planned_by_its_compiler(on, _recipe(location, *small, *changes), capfd)
    assert found.num_hosts == -(-found.num_chips // 8)
    assert found.memory_bytes == 0.75 * chip.memory
    assert found.peak_bytes < 5e9
    assert ("all-reduce" in {message.kind for message in found.messages}) == (found.num_chips > 1)
