"""Optimizers agree with the authors' code, step by step, and keep what a recipe says of its leaves."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.optim import OPTIMIZERS, make_optimizer
from vfm_jax.optim.schedules import constant, linear

ONE_DIMENSIONAL = r"^(b|g)$"  # leaf names of the reference arrays


def at(lr):
    return constant(base=lr, total_steps=10)


def run(tx, params, gradients):
    """Parameters after each step, and the last state."""
    state, history = tx.init(params), []
    update = jax.jit(tx.update)
    for grads in gradients:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    return history, state


def assert_trees_close(found, expected, rtol=1e-5, atol=1e-7):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=atol, err_msg=name)


def load(golden_directory, name):
    """Configuration, and the trees of a reference run by prefix ("param0", "grad1", "state_mu")."""
    trees = {}
    with np.load(golden_directory / "components" / f"{name}.npz") as golden:
        for path in golden.files:
            if path != "meta":
                prefix, leaf = path.split("/")
                trees.setdefault(prefix, {})[leaf] = golden[path]
        return json.loads(str(golden["meta"]))["config"], trees


def check_golden(golden_directory, name, spec_of, moments):
    config, trees = load(golden_directory, name)
    tx = make_optimizer(trees["param0"], spec_of(config), at(config["lr"]))
    history, state = run(tx, trees["param0"], [trees[f"grad{i}"] for i in range(1, 5)])
    for i, params in enumerate(history, start=1):
        assert_trees_close(params, trees[f"param{i}"])
    found = named_leaves(state)
    for ours, theirs in moments.items():
        assert_trees_close(
            {k: leaf for n, leaf in found.items() for k in [n.split("/")[-1]] if ours in n}, trees[theirs]
        )


@pytest.mark.parametrize("name", ["adamw", "adamw_b"])
def test_adamw_is_torchs(golden_directory, name):
    def spec(config):
        b1, b2 = config["betas"]
        groups = (dict(match=".*"),)  # the reference decays every tensor
        return dict(name="adamw", b1=b1, b2=b2, eps=config["eps"], weight_decay=config["weight_decay"], groups=groups)

    check_golden(golden_directory, name, spec, {"/mu/": "state_exp_avg", "/nu/": "state_exp_avg_sq"})


def test_lars_is_maes(golden_directory):
    def spec(config):
        groups = (dict(match=ONE_DIMENSIONAL, weight_decay=0.0, trust_ratio=False), dict(match=".*"))
        return dict(name="lars", groups=groups) | {k: v for k, v in config.items() if k != "lr"}

    check_golden(golden_directory, "lars", spec, {"/trace/": "state_mu"})


@pytest.mark.parametrize("name", ["lars_barlow", "lars_barlow_b"])
def test_lars_with_and_without_filters_is_barlow_twins(golden_directory, name):
    def spec(config):
        one = dict(match=ONE_DIMENSIONAL, trust_ratio=not config["lars_adaptation_filter"])
        if config["weight_decay_filter"]:
            one["weight_decay"] = 0.0
        return dict(name="lars", weight_decay=config["weight_decay"], groups=(one, dict(match=".*")))

    check_golden(golden_directory, name, spec, {"/trace/": "state_mu"})


def params_and_gradients(key, steps=3):
    shapes = {"encoder": {"kernel": (3, 5), "bias": (5,)}, "head": {"kernel": (5, 2), "bias": (2,)}}

    def draw(k):
        normal = lambda s: jax.random.normal(jax.random.fold_in(k, sum(s)), s)  # noqa: E731
        return jax.tree.map(normal, shapes, is_leaf=lambda s: isinstance(s, tuple))

    return draw(key), [draw(jax.random.fold_in(key, 1 + i)) for i in range(steps)]


def test_lars_with_classic_momentum_is_optaxs_while_the_rate_changes(key):
    params, gradients = params_and_gradients(key)
    schedule = linear(base=0.5, warmup_steps=2, total_steps=5)
    kernels = jax.tree.map(lambda p: p.ndim > 1, params)
    reference = optax.lars(schedule, 1e-2, weight_decay_mask=kernels, trust_ratio_mask=kernels)
    spec = dict(name="lars", weight_decay=1e-2, momentum=0.9)
    expected, _ = run(reference, params, gradients)
    found, _ = run(make_optimizer(params, spec | dict(classic_momentum=True), schedule), params, gradients)
    assert_trees_close(named_leaves(found[-1]), named_leaves(expected[-1]), rtol=1e-6)
    other, _ = run(make_optimizer(params, spec, schedule), params, gradients)
    assert not np.allclose(other[-1]["head"]["bias"], expected[-1]["head"]["bias"], rtol=1e-3)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_momentum_of_the_decayed_gradient(key, nesterov):
    params, gradients = params_and_gradients(key)
    spec = dict(name="sgd", momentum=0.8, nesterov=nesterov, weight_decay=0.1, groups=(dict(match=".*"),))
    found, _ = run(make_optimizer(params, spec, at(0.2)), params, gradients)
    p, m = np.array(params["head"]["bias"]), 0.0
    for grads in gradients:
        g = np.array(grads["head"]["bias"]) + 0.1 * p
        m = 0.8 * m + g
        p = p - 0.2 * (g + 0.8 * m if nesterov else m)
    np.testing.assert_allclose(found[-1]["head"]["bias"], p, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_lr_scale_multiplies_the_whole_update(key, name):
    params, gradients = params_and_gradients(key, steps=1)
    plain = dict(name=name, weight_decay=0.1)
    groups = (dict(match="^head/", lr_scale=0.25), dict(match=".*"))
    [once], _ = run(make_optimizer(params, plain | dict(groups=(dict(match=".*"),)), at(0.1)), params, gradients)
    [scaled], _ = run(make_optimizer(params, plain | dict(groups=groups), at(0.1)), params, gradients)
    moved, quarter = (np.array(tree["head"]["kernel"] - params["head"]["kernel"]) for tree in (once, scaled))
    np.testing.assert_allclose(quarter, 0.25 * moved, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(scaled["encoder"]["kernel"], once["encoder"]["kernel"])


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_frozen_leaves_have_no_update_and_no_state(key, name):
    params, gradients = params_and_gradients(key)
    groups = (dict(match="^encoder/", lr_scale=0.0), dict(match=".*"))
    tx = make_optimizer(params, dict(name=name, weight_decay=0.1, clip_norm=1.0, groups=groups), at(0.1))
    history, state = run(tx, params, gradients)
    np.testing.assert_array_equal(history[-1]["encoder"]["kernel"], params["encoder"]["kernel"])
    assert not np.array_equal(history[-1]["head"]["kernel"], params["head"]["kernel"])
    assert not [leaf for leaf in named_leaves(state) if "encoder" in leaf]
    # Clipping sees the head alone: the run equals one in which there is no encoder.
    head, head_gradients = {"head": params["head"]}, [{"head": grads["head"]} for grads in gradients]
    spec = dict(name=name, weight_decay=0.1, clip_norm=1.0, groups=(dict(match=".*"),))
    alone, _ = run(make_optimizer(head, spec, at(0.1)), head, head_gradients)
    assert_trees_close(history[-1]["head"], alone[-1]["head"], rtol=1e-6)


def test_gradients_are_clipped_to_the_global_norm(key):
    params, gradients = params_and_gradients(key, steps=1)
    spec = dict(name="sgd", momentum=0.0, clip_norm=0.5)
    [moved], _ = run(make_optimizer(params, spec, at(1.0)), params, gradients)
    step = jax.tree.map(lambda a, b: a - b, params, moved)
    np.testing.assert_allclose(optax.tree.norm(step), 0.5, rtol=1e-5)
    ratio = optax.tree.norm(gradients[0]) / 0.5
    np.testing.assert_allclose(step["head"]["bias"] * ratio, gradients[0]["head"]["bias"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("frozen", [False, True])
def test_moments_are_float32_and_their_names_end_in_their_parameters_names(name, frozen):
    params = {"encoder": {"kernel": jax.ShapeDtypeStruct((3, 5), np.float32)}, "head": {"bias": jnp.zeros(2)}}
    groups = (dict(match="^head/", lr_scale=0.0 if frozen else 1.0), dict(match=".*"))
    tx = make_optimizer(params, dict(name=name, groups=groups, clip_norm=1.0), at(0.1))
    state = named_leaves(jax.eval_shape(tx.init, params))
    moments = {leaf: value for leaf, value in state.items() if value.shape}
    assert len(moments) == (2 if name == "adamw" else 1) * (1 if frozen else 2)
    for leaf, value in moments.items():
        assert value.dtype == np.float32
        assert value.shape == ((3, 5) if leaf.endswith("/encoder/kernel") else (2,))
        assert re.search(r"/(encoder/kernel|head/bias)$", leaf)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dict(name="adam"), r"Unknown name 'adam' in config\.optimizer.*Did you mean 'adamw'"),
        (dict(name="adamw", momentum=0.9), r"config\.optimizer\.momentum"),
        (dict(name="adamw", b2=1.0), r"config\.optimizer\.b2 is 1\.0"),
        (dict(name="sgd", momentum=-0.1), r"momentum is -0\.1"),
        (dict(name="lars", clip_norm=0.0), r"clip_norm is 0\.0"),
        (dict(name="sgd", path="x"), r"config\.optimizer\.path"),
        (dict(name="sgd", groups=(dict(match=".*", lr_scale=0.0),)), "nothing is left to train"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        make_optimizer({"kernel": jnp.ones((2, 3))}, spec, at(0.1))
