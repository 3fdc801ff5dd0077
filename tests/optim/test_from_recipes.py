"""Optimizers as recipes ask for them and as a training step uses them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.objectives.case import Case, batch_of, projector, tiny_vit
from vfm_jax.cli import load_recipe, override
from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import key_for
from vfm_jax.core.trees import named_leaves
from vfm_jax.experiment import from_recipe
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.optim import make_optimizer
from vfm_jax.optim.schedules import constant
from vfm_jax.train.stages import read_stages
from vfm_jax.train.state import init_state
from vfm_jax.train.step import gradients, make_step

QUICKSTART = pathlib.Path(__file__).parents[2] / "configs/quickstart.py"


def experiment(**optimizer):
    """Of four steps; nothing is trained."""
    words = (("total_epochs", "None"), ("total_steps", "4"), ("schedule.warmup_epochs", "0.01"), ("evals", "None"))
    recipe = override(load_recipe(str(QUICKSTART)), (*words, ("baselines", "None")), "quickstart")
    recipe["optimizer"] |= optimizer
    return from_recipe(read_stages(recipe)[0].recipe)


def moves(experiment, steps):
    """The updates of each step for parameters and gradients that are all 1."""
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), experiment.abstract_params)
    state, found, update = experiment.optimizer.init(ones), [], jax.jit(experiment.optimizer.update)
    for _ in range(steps):
        updates, state = update(ones, state, ones)
        found.append({name: float(leaf.ravel()[0]) for name, leaf in named_leaves(updates).items()})
    return found


def test_groups_wait_and_have_rates_in_the_units_of_a_recipe():
    groups = (
        dict(match="^decoder/pixels/", freeze_percent=50, schedule=dict(name="constant", base=0.5)),
        dict(match=".*", weight_decay=0.0),
    )
    found = moves(experiment(groups=groups, weight_decay=0.0, eps=0.0), 3)
    pixels = [updates["decoder/pixels/kernel"] for updates in found]
    np.testing.assert_allclose(
        pixels, [0.0, 0.0, -0.5], rtol=1e-5
    )  # Adam's first step that counts is an ordinary one
    assert found[1]["encoder/patch_embedding/kernel"] < 0


def test_weight_decay_of_a_recipe_and_of_its_groups_may_be_schedules():
    rising = dict(name="cosine", base=0.1, end=0.3)
    groups = (dict(match="^decoder/", weight_decay=dict(name="constant", base=2.0)), dict(match=".*"))
    made = experiment(weight_decay=rising, groups=groups, eps=0.0)
    found = moves(made, 3)
    rates = [float(made.schedule(step)) for step in range(3)]
    decay = [(1 + 0.1), (1 + 0.1 + 0.2 * np.sin(np.pi / 8) ** 2), (1 + 0.2)]
    own = [updates["encoder/patch_embedding/kernel"] for updates in found]
    np.testing.assert_allclose(own, [-rate * d for rate, d in zip(rates, decay, strict=True)], rtol=1e-5)
    np.testing.assert_allclose(found[2]["decoder/pixels/kernel"], -rates[2] * 3.0, rtol=1e-5)


def test_two_units_for_the_wait_of_a_group_are_refused():
    groups = (dict(match=".*", freeze_epochs=1, freeze_steps=3),)
    with pytest.raises(UserError, match=r"config\.optimizer\.groups\[0\] sets both freeze_steps and freeze_epochs"):
        experiment(groups=groups)


METHODS = {
    "mae": (lambda: OBJECTIVES["mae"](tiny_vit(), MODELS["masked_decoder"](width=16, depth=1, heads=2)), (8, 12, 3)),
    "simclr": (lambda: OBJECTIVES["simclr"](tiny_vit(), projector()), (2, 8, 12, 3)),
}


@pytest.mark.parametrize("method", METHODS)
def test_sharpness_aware_steps_are_those_of_the_whole_batch(method):
    """Both gradients, though accumulated in four parts, whether or not the loss couples its examples."""
    make, shape = METHODS[method]
    objective, batch = make(), batch_of(Case(make, {"image": shape}))
    blank = init_state(objective, optax.identity(), batch, jax.random.key(0), with_ema=False)
    tx = make_optimizer(
        blank.params, dict(name="sgd", momentum=0.0, sam_radius=0.1), constant(base=1.0, total_steps=2)
    )
    state = blank.replace(opt_state=tx.init(blank.params))
    step = make_step(
        objective, tx, lambda key, b: b, seed=0, schedule=lambda s: jnp.float32(1.0), num_micro_batches=4
    )
    found = jax.jit(step)(state, batch)[0]

    @jax.jit
    def gradient(params):
        return gradients(objective, params, state.extra, batch, key_for(0, 0, "forward"), state.step)[0]

    grads = gradient(state.params)
    scale = 0.1 / optax.tree.norm(grads)
    expected = gradient(jax.tree.map(lambda p, g: p + scale * g, state.params, grads))
    moved = jax.tree.map(lambda p, q: p - q, state.params, found.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-6), moved, expected)
    assert optax.tree.norm(jax.tree.map(lambda a, b: a - b, grads, expected)) > 1e-2 * optax.tree.norm(grads)
