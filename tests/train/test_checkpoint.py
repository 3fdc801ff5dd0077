"""Saved steps: bit-equal on any mesh, whole or not there, and damage found wherever it is."""

import asyncio
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import vfm_jax
from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.sharding import make_mesh
from vfm_jax.train.checkpoint import MANIFEST, Checkpoints, checksum, restore_params


class State(flax.struct.PyTreeNode):
    step: jax.Array
    params: dict
    extra: dict
    opt_state: tuple
    ema: dict


def state_of(step, *, width=40):
    """A small state with every kind of leaf; every number follows from the step.

    The kernel has more than the 1,024 bytes up to which values are kept in Orbax's index, so its bytes lie as they
    are in a data file.
    """
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"kernel": rng.normal(size=(8, width)).astype(np.float32), "bias": np.zeros(width, np.float32)},
        "head": {"kernel": rng.normal(size=(16, 3)).astype(jnp.bfloat16)},
    }
    extra = {
        "queue": rng.integers(-9, 9, (3, 7), np.int32),
        "seen": rng.integers(0, 2**32, 11, np.uint32),
        "full": np.array([True, False, True]),
        "temperature": np.array(0.1 * step, np.float32),
        "nothing": np.zeros((0, 4), np.float32),
    }
    params, extra = jax.tree.map(jnp.asarray, (params, extra))
    return State(jnp.int32(step), params, extra, optax.adam(1e-3).init(params["encoder"]), {})


def abstract(state, mesh=None, spec=None):
    """The shapes of `state`; on a mesh, leaves of two dimensions laid out by `spec`."""

    def one(leaf):
        sharding = mesh and NamedSharding(mesh, spec if spec and leaf.shape[:1] in ((8,), (16,)) else P())
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, state)


def assert_bit_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


def save_steps(directory, *steps):
    with Checkpoints(directory, keep_last=9) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), {"step": step})


def data_file(step_directory):
    """The file that holds the encoder's kernel, and where in it."""
    kernel = np.asarray(state_of(int(step_directory.name)).params["encoder"]["kernel"]).tobytes()
    return next(
        (p, p.read_bytes().index(kernel))
        for p in step_directory.rglob("*")
        if p.is_file() and kernel in p.read_bytes()
    )


@pytest.fixture
def said():
    """Lines logged by the checkpoints of a test."""
    return []


def test_a_saved_state_comes_back_bit_for_bit_with_its_meta(tmp_path):
    meta = {"stage": "train", "examples_seen": 96, "recipe": {"lr": 1e-3, "ops": [1, None]}, "step": 3}
    with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(state_of(3))) is None
        assert checkpoints.latest_step() is None
        checkpoints.save(3, state_of(3), meta)
        checkpoints.wait()
        assert checkpoints.steps() == [3]
    with Checkpoints(tmp_path / "new" / "checkpoints") as checkpoints:
        state, found = checkpoints.restore(abstract(state_of(3)))
    assert found == meta
    assert_bit_equal(state, state_of(3))


def test_a_state_saved_on_eight_devices_is_the_same_on_one_and_on_eight_again(tmp_path):
    eight, one = make_mesh(data=2, fsdp=4), make_mesh(devices=jax.devices()[:1])
    layouts = [(eight, P(("data", "fsdp"))), (one, P()), (eight, P("fsdp"))]
    state = jax.device_put(
        state_of(1), jax.tree.map(lambda leaf: leaf.sharding, abstract(state_of(1), eight, P("data")))
    )
    for step, (mesh, spec) in enumerate(layouts, 1):
        wanted = abstract(state_of(1), mesh, spec)
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, state, {"step": step})
            state, meta = checkpoints.restore(wanted)
        assert meta["step"] == step
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, wanted)
        assert_bit_equal(state, state_of(1))


def test_what_the_caller_does_to_the_buffers_after_save_changes_nothing(tmp_path):
    state = state_of(4)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x ^ True if x.dtype == bool else x + x, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state, {})
        jax.block_until_ready(advance(state))
        found, _ = checkpoints.restore(abstract(state_of(4)))
    assert_bit_equal(found, state_of(4))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "uint8", "bool", "float64"])
@pytest.mark.parametrize(
    "spec", [P("data"), P(None, "fsdp"), P("fsdp", None, "data"), P(None, None, ("data", "fsdp"))]
)
def test_a_checksum_does_not_depend_on_the_layout(dtype, spec):
    values = np.random.default_rng(0).normal(size=(4, 12, 16)).astype(dtype)
    if dtype == "float64":
        with jax.enable_x64(True):
            array = jax.device_put(values, NamedSharding(make_mesh(data=2, fsdp=4), spec))
    else:
        array = jax.device_put(values, NamedSharding(make_mesh(data=2, fsdp=4), spec))
    assert array.dtype == values.dtype
    assert checksum(array) == checksum(values)


def test_a_checksum_is_the_sum_that_its_docstring_states():
    values = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    total = 0
    for i, bits in enumerate(values.view(np.uint32).ravel().tolist()):
        h = bits ^ (0x9E3779B1 * i % 2**32)
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        total += h ^ (h >> 16)
    assert checksum(values) == total % 2**32


def test_a_checksum_sees_every_single_bit_and_every_swap():
    values = np.random.default_rng(0).normal(size=70_001).astype(np.float32)  # more than one block
    whole = checksum(values)
    for place in (0, 32_768, 70_000):
        for bit in range(32):
            changed = values.copy()
            changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert checksum(changed) != whole
    changed = values.copy()
    changed[[1, 65_537]] = changed[[65_537, 1]]
    assert checksum(changed) != whole
    pairs = [checksum(-values[i : i + 2]) == checksum(values[i : i + 2]) for i in range(1000)]
    assert not any(pairs)  # two sign bits at once


def flip_a_bit(step):
    path, start = data_file(step)
    data = bytearray(path.read_bytes())
    data[start + 13] ^= 4  # of a value: nothing but that value changes
    path.write_bytes(data)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit_of_the_manifest(step):
    path = step / MANIFEST
    text = path.read_text()
    assert '"examples_seen": 256' in text
    path.write_text(text.replace('"examples_seen": 256', '"examples_seen": 257'))


DAMAGES = {
    "a flipped bit of array data": flip_a_bit,
    "a truncated data file": lambda step: os.truncate(data_file(step)[0], 100),
    "an emptied data file": lambda step: os.truncate(data_file(step)[0], 0),
    "a data file of zeros": lambda step: zero(data_file(step)[0]),
    "a deleted data file": lambda step: data_file(step)[0].unlink(),
    "a deleted directory of arrays": lambda step: shutil.rmtree(step / "state"),
    "Orbax's index of arrays in zeros": lambda step: zero(step / "state" / "manifest.ocdbt"),
    "Orbax's names of leaves in zeros": lambda step: zero(step / "state" / "_METADATA"),
    "an empty directory": lambda step: (shutil.rmtree(step), step.mkdir()),
    "a missing manifest": lambda step: (step / MANIFEST).unlink(),
    "a cut manifest": lambda step: os.truncate(step / MANIFEST, 100),
    "a changed manifest": flip_a_bit_of_the_manifest,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_step_is_passed_over_with_one_line(tmp_path, said, capfd, kind):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (5, 8):
            checkpoints.save(step, state_of(step), {"examples_seen": 32 * step})
    DAMAGES[kind](tmp_path / "8")
    before = sorted(p.name for p in tmp_path.iterdir())
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        state, meta = checkpoints.restore(abstract(state_of(5)))
        assert meta == {"examples_seen": 160}
        assert_bit_equal(state, state_of(5))
        assert checkpoints.steps() == [5]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert str(tmp_path / "8") in said[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert capfd.readouterr().err == ""


def test_a_step_that_was_passed_over_is_written_again_and_kept_beside(tmp_path, said):
    save_steps(tmp_path, 5, 8)
    flip_a_bit(tmp_path / "8")
    with Checkpoints(tmp_path, keep_last=1, log=said.append) as checkpoints:
        checkpoints.restore(abstract(state_of(5)))
        checkpoints.save(6, state_of(6), {}, wait=True)
        assert checkpoints.steps() == [6]  # the unsound 8 neither counts nor is deleted
        checkpoints.save(8, state_of(8), {}, wait=True)
        assert checkpoints.steps() == [8]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["8", "8.replaced"]
    with Checkpoints(tmp_path) as checkpoints:
        assert_bit_equal(checkpoints.restore(abstract(state_of(8)))[0], state_of(8))


def test_no_usable_step_is_an_error_and_not_a_fresh_start(tmp_path, said):
    save_steps(tmp_path, 5, 8)
    DAMAGES["a truncated data file"](tmp_path / "5")
    flip_a_bit(tmp_path / "8")
    with (
        Checkpoints(tmp_path, log=said.append) as checkpoints,
        pytest.raises(TrainingError, match="None of the") as e,
    ):
        checkpoints.restore(abstract(state_of(5)))
    assert "steps 5, 8" in str(e.value)
    assert "--workdir" in str(e.value)
    assert len(said) == 2


def test_what_an_interrupted_run_left_is_cleared_by_the_next_save_and_by_nothing_else(tmp_path, said):
    save_steps(tmp_path, 5)
    for name in ("7.writing", "8.writing.orbax-checkpoint-tmp", "2.deleting"):
        (tmp_path / name / "state").mkdir(parents=True)
    for name in ("notes", "5.backup", "x.writing"):  # not ours
        (tmp_path / name).mkdir()
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        assert checkpoints.steps() == [5]
        assert_bit_equal(checkpoints.restore(abstract(state_of(5)))[0], state_of(5))
        assert len(list(tmp_path.iterdir())) == 7
        checkpoints.save(6, state_of(6), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "5.backup", "6", "notes", "x.writing"]
    assert len(said) == 3


def test_a_checkpoint_of_another_model_is_refused_in_five_lines(tmp_path):
    save_steps(tmp_path, 5)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(abstract(state_of(5, width=41)))
    lines = str(error.value).splitlines()
    assert len(lines) == 5
    assert "6 leaves differ" in lines[0]  # two parameters and their two moments
    assert "  params/encoder/bias: found float32 (40,), expected float32 (41,)" in lines
    assert "--workdir" in lines[-1]
    assert "start_from" in lines[-1]


def test_another_dtype_or_another_set_of_leaves_is_refused_and_never_cast(tmp_path):
    save_steps(tmp_path, 5)
    state = state_of(5)
    half = state.replace(extra=state.extra | {"temperature": jnp.float16(0)})
    fewer = state.replace(extra={k: v for k, v in state.extra.items() if k != "seen"})
    more = state.replace(ema={"scale": jnp.zeros(2)})
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"extra/temperature: found float32 \(\), expected float16 \(\)"):
            checkpoints.restore(abstract(half))
        with pytest.raises(UserError, match=r"extra/seen: found uint32 \(11,\), expected nothing"):
            checkpoints.restore(abstract(fewer))
        with pytest.raises(UserError, match=r"ema/scale: found nothing, expected float32 \(2,\)"):
            checkpoints.restore(abstract(more))


def test_retention_keeps_the_newest_and_every_kth(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_every_steps=4) as checkpoints:
        for step in (2, 4, 6, 8, 9, 10):
            checkpoints.save(step, state_of(step), {})
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [4, 8, 9, 10]


def test_saving_a_step_again_writes_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state_of(3), {"first": True})
        checkpoints.save(3, state_of(3), {"first": False})
    with Checkpoints(tmp_path) as checkpoints:
        _, meta = checkpoints.restore(abstract(state_of(3)))
        checkpoints.save(3, state_of(3), {"first": False})
    assert meta == {"first": True}
    assert [p.name for p in tmp_path.iterdir()] == ["3"]


@pytest.mark.parametrize("arguments", [dict(keep_last=0), dict(keep_every_steps=0)])
def test_a_retention_that_keeps_nothing_is_refused(tmp_path, arguments):
    with pytest.raises(UserError, match="expected 1 or more"):
        Checkpoints(tmp_path, **arguments)


def test_the_address_of_an_object_store_is_refused():
    with pytest.raises(UserError, match="Mount the bucket"):
        Checkpoints("gs://bucket/run")


def test_parameters_are_read_without_the_optimizer(tmp_path):
    state = state_of(7).replace(ema={"encoder": state_of(9).params["encoder"]})
    with Checkpoints(tmp_path / "run" / "checkpoints" / "train") as checkpoints:
        checkpoints.save(7, state, {"step": 7})
    for path in ("run", "run/checkpoints", "run/checkpoints/train", "run/checkpoints/train/7"):
        saved = restore_params(tmp_path / path)
        assert saved.meta == {"step": 7}
        assert_bit_equal(saved.params, state.params)
        assert_bit_equal(saved.ema, state.ema)
        assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(saved.params))


def test_parameters_are_read_from_the_newest_sound_step(tmp_path, said):
    save_steps(tmp_path, 5, 8)
    flip_a_bit(tmp_path / "8")
    saved = restore_params(tmp_path, log=said.append)
    assert saved.meta == {"step": 5}
    assert saved.ema == {}
    assert len(said) == 1
    with pytest.raises(UserError, match="No usable checkpoint"):
        restore_params(tmp_path / "8", log=said.append)


def test_a_path_that_names_no_single_set_of_steps_is_refused(tmp_path):
    with pytest.raises(UserError, match="No checkpoint in"):
        restore_params(tmp_path)
    save_steps(tmp_path / "checkpoints" / "train", 1)
    save_steps(tmp_path / "checkpoints" / "probe", 1)
    with pytest.raises(UserError, match="several sets of checkpoints"):
        restore_params(tmp_path)


def test_a_full_disk_is_said_at_its_own_step_and_leaves_the_one_before(tmp_path, said, capfd):
    big = state_of(2).replace(extra={"queue": jnp.ones((2000, 300), jnp.float32)})
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        checkpoints.save(1, state_of(1), {}, wait=True)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
        try:
            checkpoints.save(2, big, {})
            with pytest.raises(TrainingError, match=r"step 2 .*File too large") as error:
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "Step 1 is saved and untouched" in str(error.value)
        assert checkpoints.steps() == [1]
        checkpoints.save(3, big, {})  # and the run can go on
    with Checkpoints(tmp_path, log=said.append) as checkpoints:
        assert_bit_equal(checkpoints.restore(abstract(big))[0], big)
        checkpoints.save(4, big, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]  # nothing of step 2 is left
    assert capfd.readouterr().err == ""


def test_a_disk_without_room_for_the_state_is_said_by_save_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(TrainingError, match="step 2 .*0 MB free"):
        checkpoints.save(2, state_of(2), {})


def test_a_directory_that_cannot_be_made_is_said_by_save_itself(tmp_path):
    (tmp_path / "file").write_text("")
    with Checkpoints(tmp_path / "file" / "checkpoints") as checkpoints:
        assert checkpoints.restore(abstract(state_of(1))) is None
        with pytest.raises(TrainingError, match="step 2 .*Not a directory"):
            checkpoints.save(2, state_of(2), {})


def test_a_failed_save_does_not_hide_the_error_that_ends_the_run(tmp_path, said):
    def run():
        with Checkpoints(tmp_path, log=said.append) as checkpoints:
            checkpoints.save(2, {"a": np.array("no number")}, {})
            raise KeyError("the run's own")

    with pytest.raises(KeyError, match="the run's own"):
        run()
    assert len(said) == 1
    assert "Could not save step 2" in said[0]


def test_a_failed_save_is_raised_when_the_run_ends(tmp_path):
    def run():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(2, {"a": np.array("no number")}, {})

    with pytest.raises(TrainingError, match="Could not save step 2"):
        run()


def test_restoring_works_where_an_event_loop_runs_as_in_a_notebook(tmp_path):
    save_steps(tmp_path, 5)

    async def cell():
        with Checkpoints(tmp_path) as checkpoints:
            found = checkpoints.restore(abstract(state_of(5)))
            checkpoints.save(6, state_of(6), {})
            return found

    state, _ = asyncio.run(cell())
    assert_bit_equal(state, state_of(5))
    assert_bit_equal(restore_params(tmp_path).params, state_of(6).params)


def test_logging_of_other_users_of_absl_is_left_alone(tmp_path, caplog):
    save_steps(tmp_path, 1)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("absl").warning("from elsewhere")
    assert "from elsewhere" in caplog.text


CHILD = """
import sys
import numpy as np
from vfm_jax.train.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    step = checkpoints.latest_step() or 0
    while sys.argv[2] == "forever":
        step += 1
        checkpoints.save(step, {"a": np.full((7, 300), step)}, {"step": step})
        print(step - 1, flush=True)
    checkpoints.save(step + 1, {"a": np.full((7, 300), step + 1)}, {"step": step + 1})
    sys.exit(3)
"""


def run_child(directory, *arguments):
    command = [sys.executable, "-W", "error", "-c", CHILD, str(directory), *arguments]
    root = pathlib.Path(vfm_jax.__file__).parent.parent
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


def test_a_killed_run_keeps_every_step_it_was_told_of(tmp_path):
    rng = np.random.default_rng(0)
    reached = 0
    for _ in range(2):
        with run_child(tmp_path, "forever") as child:
            child.stdout.readline()
            child.stdout.readline()  # the step before the one that this prints is on the disk
            time.sleep(rng.uniform(0, 0.4))
            child.send_signal(signal.SIGKILL)
            told = [int(line) for line in child.stdout.read().split()]
        with Checkpoints(tmp_path) as checkpoints:
            state, meta = checkpoints.restore({"a": jax.ShapeDtypeStruct((7, 300), np.int64)})
        assert meta["step"] >= max(told, default=reached + 1)
        np.testing.assert_array_equal(state["a"], meta["step"])
        assert meta["step"] > reached
        reached = meta["step"]


def test_leaving_right_after_a_save_does_not_lose_it(tmp_path):
    with run_child(tmp_path, "once") as child:
        _, err = child.communicate(timeout=100)
    assert child.returncode == 3
    assert err == ""
    assert json.loads((tmp_path / "1" / MANIFEST).read_text())["content"]["meta"] == {"step": 1}
