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
                prefix, _, leaf = path.partition("/")
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


def test_lamb_is_timms(golden_directory):
    def spec(config):
        b1, b2 = config["betas"]
        groups = (dict(match=".*"),)  # the reference has one group: vectors decay and adapt too
        return dict(name="lamb", b1=b1, b2=b2, eps=config["eps"], weight_decay=config["weight_decay"], groups=groups)

    check_golden(golden_directory, "lamb", spec, {"/mu/": "state_exp_avg", "/nu/": "state_exp_avg_sq"})


def test_lamb_without_decay_is_adam_and_lars_is_not_sgd(key):
    params, gradients = params_and_gradients(key, steps=1)
    [found], _ = run(make_optimizer(params, dict(name="lamb", clip_norm=None), at(0.1)), params, gradients)
    [adam], _ = run(make_optimizer(params, dict(name="adamw", eps=1e-6), at(0.1)), params, gradients)
    assert_trees_close(named_leaves(found), named_leaves(adam))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adafactor_is_big_visions(golden_directory, momentum):
    _, trees = load(golden_directory, "adafactor_bigvision")
    expected = "update_mom" if momentum else "update"
    params = jax.tree.map(jnp.zeros_like, trees["grad1"])
    spec = dict(name="adafactor", momentum=momentum, momentum_dtype="float32")
    history, _ = run(make_optimizer(params, spec, at(1.0)), params, [trees[f"grad{i}"] for i in (1, 2, 3)])
    for step, (before, after) in enumerate(zip([params, *history], history, strict=False), start=1):
        moved = jax.tree.map(lambda a, b: a - b, before, after)
        assert_trees_close(moved, trees[f"{expected}{step}"], rtol=1e-4, atol=1e-5)


def test_adafactor_keeps_two_vectors_of_a_matrix_with_the_axes_of_the_parameter():
    shapes = {"encoder": {"kernel": (40, 3, 2, 36), "bias": (50,)}, "head": {"kernel": (40, 5)}}
    params = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    state = jax.eval_shape(make_optimizer(params, dict(name="adafactor"), at(0.1)).init, params)
    found = {name: (leaf.shape, leaf.dtype) for name, leaf in named_leaves(state).items() if leaf.shape}
    moments = {(1, 3, 2, 36), (40, 3, 2, 1)}
    assert {
        s for name, (s, _) in found.items() if name.endswith("encoder/kernel") and "/trace/" not in name
    } == moments
    assert [s for name, (s, _) in found.items() if name.endswith("head/kernel")] == [(40, 5)] * 2
    assert {dtype for name, (_, dtype) in found.items() if "/trace/" in name} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.0, 2e-2 * 0.02)])
def test_muon_is_keller_jordans(golden_directory, dtype, rtol, atol):
    """PyTorch's matrices are (outputs, inputs), its convolutions (outputs, inputs, rows, columns)."""
    config, trees = load(golden_directory, "muon")

    def ours(tree):
        return {f"layer_{k}": {"kernel": v.transpose(2, 3, 1, 0) if v.ndim == 4 else v.T} for k, v in tree.items()}

    spec = dict(name="muon", momentum=config["momentum"], weight_decay=config["weight_decay"], dtype=dtype)
    params = ours(trees["param0"])
    history, _ = run(
        make_optimizer(params, spec, at(config["lr"])), params, [ours(trees[f"grad{i}"]) for i in (1, 2, 3)]
    )
    key = {"float32": "f64", "bfloat16": "bf16"}[dtype]
    for step, found in enumerate(history, start=1):
        expected = named_leaves(ours(trees[f"param{step}_{key}"]))
        assert_trees_close(named_leaves(found), expected, rtol=rtol, atol=atol)


def test_lion_moves_by_the_sign_and_decays(key):
    params, gradients = params_and_gradients(key)
    spec = dict(name="lion", weight_decay=0.1, groups=(dict(match=".*"),))
    found, _ = run(make_optimizer(params, spec, at(0.01)), params, gradients)
    p, m = np.array(params["head"]["bias"]), 0.0
    for grads in gradients:
        g = np.array(grads["head"]["bias"])
        p, m = p - 0.01 * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p), 0.99 * m + 0.01 * g
    np.testing.assert_allclose(found[-1]["head"]["bias"], p, rtol=1e-6)


def test_weight_decay_may_be_a_schedule(key):
    """DINO's rising decay: the same run as one whose decay is set anew at each step."""
    params, gradients = params_and_gradients(key)
    rising = linear(base=0.1, end=0.4, total_steps=3)
    spec = dict(name="adamw", weight_decay=rising)
    history, _ = run(make_optimizer(params, spec, at(0.1)), params, gradients)
    kernel, plain = params["head"]["kernel"], dict(name="adamw")
    undecayed, _ = run(make_optimizer(params, plain, at(0.1)), params, gradients)
    steps = np.diff([params["head"]["kernel"], *(p["head"]["kernel"] for p in undecayed)], axis=0)
    for decay, step, found in zip((0.1, 0.2, 0.3), steps, history, strict=True):
        kernel = kernel + step - 0.1 * decay * kernel
        np.testing.assert_allclose(found["head"]["kernel"], kernel, rtol=1e-5, atol=1e-6)
    assert_trees_close(history[-1]["head"], history[-1]["head"] | {"bias": undecayed[-1]["head"]["bias"]})


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_group_may_wait_and_have_a_rate_of_its_own(key, name):
    params, gradients = params_and_gradients(key)
    groups = (
        dict(match="^head/", freeze_steps=2, schedule=constant(base=0.05, total_steps=9)),
        dict(match=".*"),
    )
    schedule = linear(base=0.1, end=0.0, total_steps=3)
    history, _ = run(make_optimizer(params, dict(name=name, groups=groups), schedule), params, gradients)
    for found in history[:2]:
        np.testing.assert_array_equal(found["head"]["kernel"], params["head"]["kernel"])
    assert not np.array_equal(history[2]["head"]["kernel"], params["head"]["kernel"])
    free, _ = run(make_optimizer(params, dict(name=name, groups=groups[1:]), schedule), params, gradients)
    assert_trees_close(history[2]["encoder"], free[2]["encoder"])


def test_sharpness_aware_steps_follow_the_gradient_at_the_climbed_point(key):
    """Foret et al., Algorithm 1, on a quadratic; the frozen leaf has no part in the climb."""
    params = {"encoder": {"w": jax.random.normal(key, (3,))}, "head": {"w": jnp.ones(2)}}
    curvature = {"encoder": {"w": jnp.array([1.0, 2.0, 5.0])}, "head": {"w": jnp.ones(2)}}
    gradient = lambda p: jax.tree.map(jnp.multiply, curvature, p)  # noqa: E731
    groups = (dict(match="^head/", lr_scale=0.0), dict(match=".*"))
    spec = dict(name="sgd", momentum=0.0, sam_radius=0.5, groups=groups)
    tx = make_optimizer(params, spec, at(0.1))
    updates, _ = tx.update(gradient(params), tx.init(params), params, gradient=gradient)
    a, w = (np.array(tree["encoder"]["w"]) for tree in (curvature, params))
    climbed = w + 0.5 * (a * w) / np.linalg.norm(a * w)
    np.testing.assert_allclose(updates["encoder"]["w"], -0.1 * a * climbed, rtol=1e-5)
    np.testing.assert_array_equal(updates["head"]["w"], 0.0)


def params_and_gradients(key, steps=3):
    shapes = {"encoder": {"kernel": (3, 5), "bias": (5,)}, "head": {"kernel": (5, 2), "bias": (2,)}}

    def draw(k):
        normal = lambda s: jax.random.normal(jax.random.fold_in(k, sum(s)), s)  # noqa: E731
        return jax.tree.map(normal, shapes, is_leaf=lambda s: isinstance(s, tuple))

    return draw(key), [draw(jax.random.fold_in(key, 1 + i)) for i in range(steps)]


def test_lars_with_clipped_trust_is_sgd_at_the_smaller_of_two_rates(key):
    """LARC, written out: one leaf that its ratio slows down, one that the schedule does, one that does not adapt."""
    schedule = linear(base=0.5, warmup_steps=2, total_steps=6)
    names = ("a/kernel", "b/kernel", "c/bias")
    draws = jax.random.normal(key, (6, len(names), 4), jnp.float32)
    params = dict(zip(names, draws[0] * jnp.array([[0.1], [9.0], [1.0]]), strict=True))
    spec = dict(name="lars", momentum=0.9, trust_coefficient=0.1, clip_trust=True, weight_decay=0.01)
    optimizer = make_optimizer(params, spec, schedule)
    state, ours = optimizer.init(params), params
    theirs, buffers = {n: np.asarray(p, np.float64) for n, p in params.items()}, dict.fromkeys(names, 0.0)
    for step in range(5):
        grads = dict(zip(names, draws[1 + step], strict=True))
        updates, state = optimizer.update(grads, state, ours)
        ours = optax.apply_updates(ours, updates)
        rate = float(schedule(step))
        for name in names:
            p, g = theirs[name], np.asarray(grads[name], np.float64)
            if name != "c/bias":
                g = g + 0.01 * p
                g = g * min(0.1 * np.linalg.norm(p) / np.linalg.norm(g) / rate if rate else 1.0, 1.0)
            buffers[name] = 0.9 * buffers[name] + g
            theirs[name] = p - rate * buffers[name]
    for name in names:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


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


def test_sgd_keeps_its_momentum_in_bfloat16_where_it_is_told_to(key):
    params, gradients = params_and_gradients(key, steps=2)
    spec = dict(name="sgd", momentum=0.5, momentum_dtype="bfloat16")
    [first, second], state = run(make_optimizer(params, spec, at(1.0)), params, gradients)
    grads = [np.array(g["head"]["kernel"]) for g in gradients]
    np.testing.assert_allclose(first["head"]["kernel"], params["head"]["kernel"] - grads[0], rtol=1e-6)
    kept = np.array(jnp.asarray(grads[0]).astype(jnp.bfloat16).astype(jnp.float32))
    moved = np.array(first["head"]["kernel"] - second["head"]["kernel"])
    np.testing.assert_allclose(moved, grads[1] + 0.5 * kept, rtol=1e-4, atol=1e-5)
    assert {leaf.dtype for leaf in named_leaves(state).values() if leaf.ndim} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars"])
def test_a_first_moment_in_bfloat16_takes_half_the_memory_and_hardly_changes_the_way(key, name):
    params, gradients = params_and_gradients(key, steps=3)
    (exact, whole), (near, half) = (
        run(make_optimizer(params, dict(name=name, momentum_dtype=dtype), at(0.1)), params, gradients)
        for dtype in ("float32", "bfloat16")
    )
    for one, other in zip(named_leaves(whole).items(), named_leaves(half).values(), strict=True):
        first = "/mu/" in one[0] or "/trace/" in one[0]
        assert other.dtype == (jnp.bfloat16 if first else one[1].dtype), one[0]
    assert any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(half))
    for start, one, other in zip(*map(jax.tree.leaves, (params, exact[-1], near[-1])), strict=True):
        way = np.linalg.norm(one - start)
        assert np.linalg.norm(other - one) <= 2**-7 * way


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
    assert len(moments) == (2 if name in ("adafactor", "adamw", "lamb") else 1) * (1 if frozen else 2) + (
        name == "muon" and not frozen  # the bias is AdamW's
    )
    for leaf, value in moments.items():
        assert value.dtype == (jnp.bfloat16 if name == "adafactor" and "/trace/" in leaf else np.float32)
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
        (dict(name="adamw", clip_over="networks"), "Did you mean 'network'"),
        (dict(name="adafactor", momentum_dtype="float16"), "Did you mean"),
        (dict(name="sgd", sam_radius=0.0), r"sam_radius is 0\.0"),
        (dict(name="sgd", path="x"), r"config\.optimizer\.path"),
        (dict(name="sgd", groups=(dict(match=".*", lr_scale=0.0),)), "nothing is left to train"),
    ],
)
def test_an_optimizer_that_cannot_be_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        make_optimizer({"kernel": jnp.ones((2, 3))}, spec, at(0.1))
