"""What must hold for every objective; one row of `cases_*.py` per method, and a method without one is an error."""

import functools
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from skimage import data as photographs

from tests.objectives.case import BATCH, HEIGHT, WIDTH, Case, batch_of, projector, tiny_vit
from vfm_jax.core.sharding import batch_sharding, make_mesh, replicated, shardings, traced_over
from vfm_jax.core.trees import named_leaves
from vfm_jax.models import MODELS
from vfm_jax.nn.patches import patchify, unpatchify
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.objectives.interface import Variables
from vfm_jax.train.state import init_state
from vfm_jax.train.step import gradients, make_step

KEY = 5  # of the step that is looked at


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CASES


IMAGE, PAIR = {"image": (HEIGHT, WIDTH, 3)}, {"image": (2, HEIGHT, WIDTH, 3)}
CASES = {
    "mae": Case(
        lambda: OBJECTIVES["mae"](tiny_vit(drop_path=0.2), MODELS["masked_decoder"](width=16, depth=1, heads=2)),
        IMAGE,
        hidden=lambda outputs: outputs.masked,
        seen=lambda outputs: (outputs.prediction, outputs.pooled),
    ),
    "simclr": Case(lambda: OBJECTIVES["simclr"](tiny_vit(drop_path=0.2), projector(), temperature=0.5), PAIR),
    "supervised": Case(
        lambda: OBJECTIVES["supervised"](tiny_vit(), MODELS["linear_head"](num_classes=5)), IMAGE, learning_rate=0.05
    ),
    "supervised frozen": Case(
        lambda: OBJECTIVES["supervised"](
            tiny_vit(), MODELS["linear_head"](num_classes=5, batch_norm=True), freeze_encoder=True
        ),
        IMAGE,
        still=("^encoder/",),
        learning_rate=0.05,
    ),
}
for _path in sorted(pathlib.Path(__file__).parent.glob("cases_*.py")):
    CASES |= _load(_path)

every = pytest.mark.parametrize("name", CASES)


def test_every_objective_has_a_case():
    """A case is named by its method, and perhaps a word more."""
    assert {name.split()[0] for name in CASES} == set(OBJECTIVES)


class Looked:
    """One case, and what several tests ask of it. Every compiled program serves as many of them as it can."""

    def __init__(self, case):
        self.case, self.objective, self.batch = case, case.make(), batch_of(case)
        # The momentum of a first step is its gradient.
        self.optimizer = optax.sgd(case.learning_rate, momentum=0.9)
        self.create = functools.partial(init_state, self.objective, self.optimizer, self.batch, with_ema=False)
        self.fresh = jax.device_get(jax.jit(self.create)(jax.random.key(0)))
        self.variables = jax.device_put(Variables(self.fresh.params, self.fresh.extra))
        self.step = jax.jit(self.step_of())

    def step_of(self, parts=1):
        return make_step(
            self.objective,
            self.optimizer,
            lambda key, batch: batch,
            seed=0,
            num_micro_batches=parts,
            schedule=lambda step: jnp.float32(0.1),
        )

    @functools.cached_property
    def first(self):
        """State and measurements after one step."""
        return jax.device_get(self.step(self.fresh, self.batch))

    @property
    def grads(self):
        return self.first[0].opt_state[0].trace

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(self, image):
        batch = self.batch | {"image": image}
        return self.objective.forward(*self.variables, batch, jax.random.key(KEY), jnp.int32(3))[0]


@functools.cache
def look(name):
    return Looked(CASES[name])


def _assert_equal_but_for_rounding(found, expected):
    for (name, one), other in zip(named_leaves(expected).items(), jax.tree.leaves(found), strict=True):
        scale = max(1.0, np.nanmax(np.abs(one), initial=0.0))
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=2e-6 * scale, err_msg=name)


@every
def test_accumulated_gradient_equals_that_of_the_whole_batch(name):
    one = look(name)
    state, measured = one.first
    parts, measured_of_parts = jax.jit(one.step_of(parts=4))(one.fresh, one.batch)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(one.grads)) > 1e-4
    _assert_equal_but_for_rounding(parts.opt_state[0].trace, one.grads)
    _assert_equal_but_for_rounding(parts.extra, state.extra)
    _assert_equal_but_for_rounding(measured_of_parts["loss"], measured["loss"])


@every
def test_terms_of_a_loss_sum_to_it_and_every_measurement_is_a_finite_scalar(name):
    measured = look(name).first[1]
    terms = [value for term, value in measured.items() if term.startswith("loss/")]
    assert len(terms) != 1
    if terms:
        np.testing.assert_allclose(sum(terms), measured["loss"], rtol=1e-5, atol=1e-6)
    for term, value in measured.items():
        assert value.shape == () or term == "leaf_gradient_norms", term
        assert np.isfinite(value).all(), term


@every
def test_gradients_reach_the_parameters_that_the_paper_trains_and_no_others(name):
    one = look(name)
    grads = named_leaves(one.grads)
    for leaf, grad in grads.items():
        still = any(re.search(pattern, leaf) for pattern in one.case.still)
        assert (np.abs(grad).max() == 0) is np.bool_(still), f"{leaf}: {np.abs(grad).max()}"
    for pattern in one.case.still:
        assert any(re.search(pattern, leaf) for leaf in grads), f"{pattern} matches nothing"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.teacher])
def test_no_gradient_flows_into_the_teacher(name):
    one = look(name)
    (kind,) = one.case.teacher

    batch = one.objective.draw(one.batch, jax.random.key(KEY), jnp.int32(3))

    @jax.jit
    def grads(teacher):
        def loss(teacher):
            extra = {**one.variables.extra, kind: teacher}
            outputs, after = one.objective.forward(
                one.variables.params, extra, batch, jax.random.key(KEY), jnp.int32(3)
            )
            return one.objective.criterion(one.variables.params, after, outputs, jnp.int32(3))[0]

        return jax.grad(loss)(teacher)

    for leaf, grad in named_leaves(grads(one.variables.extra[kind])).items():
        assert np.abs(grad).max() == 0, leaf


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.hidden is not None])
def test_hidden_patches_never_reach_the_encoder(name):
    one = look(name)
    before = one.outputs(one.batch["image"])
    hidden = np.asarray(one.case.hidden(before))  # b n
    assert hidden.any(axis=1).all() and not hidden.all(axis=1).any()
    side = HEIGHT * WIDTH // hidden.shape[1]
    patch = round(side**0.5)
    image = one.batch["image"]
    patches = patchify(image, patch)
    changed = unpatchify(
        jnp.where(hidden[:, :, None], patches + 3.0, patches), (HEIGHT // patch, WIDTH // patch), patch
    )
    assert np.abs(changed - image).max() > 2
    for one_leaf, other in zip(
        jax.tree.leaves(one.case.seen(before)), jax.tree.leaves(one.case.seen(one.outputs(changed))), strict=True
    ):
        np.testing.assert_array_equal(one_leaf, other)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.teacher])
def test_the_teacher_is_the_exact_average_of_its_student(name):
    one = look(name)
    ((kind, momentum),) = one.case.teacher.items()
    start = one.variables.extra[kind]
    for role, params in start.items():  # it begins as a copy
        jax.tree.map(np.testing.assert_array_equal, params, one.variables.params[role])
    moved = jax.tree.map(lambda leaf: leaf + 0.5 * jnp.sin(leaf + 1.0), one.variables.params)
    for step in (0, 7):
        after = one.objective.after_update(moved, one.variables.extra, jnp.int32(step))[kind]
        m = float(momentum(step))
        student = {role: moved[role] for role in start}
        expected = jax.tree.map(lambda a, b, m=m: m * a + (1 - m) * b, start, student)
        _assert_equal_but_for_rounding(after, expected)
        assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {np.dtype("float32")}
    reloaded = one.objective.after_load(moved, one.variables.extra)[kind]
    for role, params in reloaded.items():
        jax.tree.map(np.testing.assert_array_equal, params, moved[role])


@pytest.fixture
def always_compiled():
    """Programs are not kept: DINOv2's for eight devices hangs when it comes from the cache (jax 0.10.2)."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@every
@pytest.mark.usefixtures("always_compiled")
def test_a_step_on_eight_devices_equals_one_on_a_single_device(name, monkeypatch):
    monkeypatch.setattr("vfm_jax.core.sharding.FSDP_MIN_SIZE", 64)
    one = look(name)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    layout = shardings(jax.eval_shape(one.create, jax.random.key(0)), mesh)
    placed = jax.device_put((one.fresh, one.batch), (layout, batch_sharding(mesh)))
    state, measured = jax.jit(traced_over(mesh, one.step_of()), out_shardings=(layout, replicated(mesh)))(*placed)
    assert any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params))
    _assert_equal_but_for_rounding(state.opt_state[0].trace, one.grads)
    _assert_equal_but_for_rounding(state.extra, one.first[0].extra)
    _assert_equal_but_for_rounding(measured["loss"], one.first[1]["loss"])


def _photographs(case):
    """Real images in the shape of the case's views: crops of one photograph, as normalised."""
    image = photographs.astronaut().astype(np.float32) / 127.5 - 1
    rng = np.random.default_rng(0)

    def crop(shape):
        top, left = rng.integers(0, 400, 2)
        region = image[top : top + 8 * shape[0] : 8, left : left + 8 * shape[1] : 8]
        return np.resize(region, shape)

    batch = batch_of(case)
    for field, shape in case.views.items():
        count = int(np.prod(shape[:-3], dtype=int))
        made = np.stack([crop(shape[-3:]) for _ in range(BATCH * count)])
        batch[field] = jnp.asarray(made.reshape(BATCH, *shape))
    return batch


@every
def test_the_loss_falls_on_one_batch_of_photographs_and_a_resumed_run_is_the_same_bit_for_bit(name):
    one = look(name)
    batch, state, losses, saved = _photographs(one.case), one.fresh, [], None
    for number in range(one.case.steps):
        if number == one.case.steps // 2:
            saved = jax.device_get(state)  # what a checkpoint holds
        state, measured = one.step(state, batch)
        losses.append(float(measured["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3]), losses
    again = saved
    for number in range(one.case.steps // 2, one.case.steps):
        again, measured = one.step(again, batch)
        assert float(measured["loss"]) == losses[number]
    for (leaf, a), b in zip(named_leaves(state).items(), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=leaf)


@every
def test_loss_and_gradients_are_finite_in_bfloat16(name, monkeypatch):
    one = look(name)
    half = _with_dtype(one.case.make, monkeypatch)
    grads, extra, measured = jax.jit(
        lambda variables, batch: gradients(half, *variables, batch, jax.random.key(KEY), jnp.int32(3))
    )(one.variables, one.batch)
    assert measured["loss"].dtype == np.dtype("float32")
    for leaf, value in named_leaves((grads, extra)).items():
        assert np.isfinite(np.asarray(value, np.float32)).all(), leaf


def _with_dtype(make, monkeypatch):
    """The case's objective with every network's products in bfloat16."""
    for name, network in MODELS.items():
        monkeypatch.setitem(MODELS, name, functools.partial(network, dtype=jnp.bfloat16))
    return make()
