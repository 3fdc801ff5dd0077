"""A run over meshes of 8, 4, 2, 1, 2, 4 and 8 devices, saved and restored between them, is the run on one of them."""

import json

import jax
import numpy as np
import pytest

from tests.train.mnist import SUPERVISED
from vfm_jax import experiment
from vfm_jax.core.sharding import HOST_MEMORY, make_mesh
from vfm_jax.train.checkpoint import Checkpoints
from vfm_jax.train.loop import blank_state, train
from vfm_jax.train.record import Watch

STEPS = 100
# Two heads: there is something to split over each axis, and no more.
RECIPE = SUPERVISED | dict(
    ema=dict(momentum=0.9),
    checkpoints=dict(every_steps=1000, keep_last=100),
    log_every_steps=1,
)
# Devices and sizes of the axes (data, fsdp, tensor), and how many of the steps are done by its end.
MESHES = ((8, (2, 2, 2), 15), (4, (1, 4, 1), 30), (2, (1, 1, 2), 45), (1, (1, 1, 1), 60),
          (2, (1, 2, 1), 75), (4, (2, 1, 2), 90), (8, (2, 4, 1), STEPS))  # fmt: skip

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs eight devices")


def _mesh(count, sizes):
    data, fsdp, tensor = sizes
    return make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[:count])


class Cluster:
    """A run whose every part has other devices, and the examples that its steps took."""

    def __init__(self, workdir, patch):
        self.workdir, self.indices, self._patch, stepped = workdir, [], patch, Watch.stepped

        def look(watch, measured, batch, waited):
            self.indices.append(np.asarray(batch["index"]))
            stepped(watch, measured, batch, waited)

        patch.setattr(Watch, "stepped", look)
        patch.setattr("vfm_jax.core.sharding.FSDP_MIN_SIZE", 32)  # of such small networks some leaves are split too

    def train_to(self, steps, mesh):
        self._patch.setattr(experiment, "make_mesh", lambda **sizes: mesh)
        return train(RECIPE | {"total_steps": steps}, self.workdir)

    def losses(self):
        rows = [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The steps on one mesh of eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        run = Cluster(tmp_path_factory.mktemp("one"), patch)
        run.train_to(STEPS, _mesh(*MESHES[0][:2]))
    return run


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The same steps over seven meshes."""
    with pytest.MonkeyPatch.context() as patch:
        run = Cluster(tmp_path_factory.mktemp("many"), patch)
        for count, sizes, steps in MESHES:
            summary = run.train_to(steps, _mesh(count, sizes))
            assert (summary["steps"], summary["finished"]) == (steps, True)
    return run


def test_a_run_over_seven_meshes_sees_the_same_examples_in_the_same_order(one, many):
    assert len(one.indices) == STEPS
    np.testing.assert_array_equal(one.indices, many.indices)


def test_a_run_over_seven_meshes_has_the_losses_of_one(one, many):
    np.testing.assert_allclose(many.losses(), one.losses(), rtol=0, atol=1e-4)
    assert one.losses()[-1] < 0.9 * one.losses()[0]


def test_moments_and_average_in_host_memory_change_no_number(one, tmp_path, monkeypatch):
    """Neither do they where the run stops and goes on."""
    monkeypatch.setattr("vfm_jax.core.sharding.FSDP_MIN_SIZE", 32)
    mesh = _mesh(*MESHES[0][:2])
    monkeypatch.setattr(experiment, "make_mesh", lambda **sizes: mesh)
    recipe = RECIPE | {"total_steps": 10, "offload": ("opt_state", "ema")}
    _, _, abstract = blank_state(experiment.from_recipe(recipe))
    kinds = jax.tree.map(lambda leaf: leaf.sharding.memory_kind, abstract)
    assert set(jax.tree.leaves((kinds.params, kinds.step))) == {"device"}
    assert set(jax.tree.leaves(kinds.ema)) == {HOST_MEMORY}
    train(recipe | {"total_steps": 5}, tmp_path)
    train(recipe, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == one.losses()[:10]


def test_a_state_is_the_same_bit_for_bit_on_every_mesh_it_goes_to(many, tmp_path, monkeypatch):
    """Parameters, moments and average, saved by one mesh and restored by the next."""
    monkeypatch.setattr("vfm_jax.core.sharding.FSDP_MIN_SIZE", 32)
    directory, expected = many.workdir / "checkpoints" / "train", None
    for count, sizes, _ in MESHES:
        mesh = _mesh(count, sizes)
        monkeypatch.setattr(experiment, "make_mesh", lambda mesh=mesh, **sizes: mesh)
        _, _, abstract = blank_state(experiment.from_recipe(RECIPE | {"total_steps": STEPS}))
        with Checkpoints(directory) as checkpoints:
            state, meta = checkpoints.restore(abstract, MESHES[0][2])
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda leaf: leaf.sharding, abstract)
        split = {axis for leaf in jax.tree.leaves(state) for axis in leaf.sharding.spec if axis}
        assert split == {axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1}
        found = jax.device_get(state)
        expected = expected or found
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        directory = tmp_path / f"{count}{sizes}"
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(MESHES[0][2], state, meta, wait=True)
