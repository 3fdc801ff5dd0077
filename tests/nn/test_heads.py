"""Heads: what has an offset, how a classifier starts, and the heads of DINO and MoCo v3 against the authors'."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.nn.heads import DinoHead, LinearHead, ProjectionHead


@pytest.fixture
def features(key):
    deviation = jnp.linspace(0.1, 3, 5, dtype=jnp.float32)
    return 50 + deviation[None] * jax.random.normal(key, (16, 5), jnp.float32)


def _standardized(x, epsilon):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + epsilon)


def test_the_projector_has_an_offset_in_every_norm_but_the_last(key, features):
    head = ProjectionHead(hidden_dim=7, out_dim=4, num_layers=3)
    variables = jax.eval_shape(lambda: head.init(key, features, train=True))
    assert {name: leaf.shape for name, leaf in named_leaves(variables["params"]).items()} == {
        "kernel_0": (5, 7),
        "kernel_1": (7, 7),
        "kernel_2": (7, 4),
        "norm_0/norm/scale": (7,),
        "norm_0/norm/bias": (7,),
        "norm_1/norm/scale": (7,),
        "norm_1/norm/bias": (7,),
        "norm_2/norm/scale": (4,),
    }


def test_the_projector_is_dense_norm_relu_dense_norm(key, features):
    head = ProjectionHead(out_dim=4, batch_norm_epsilon=1e-3)
    y, variables = head.init_with_output(key, features, train=True)
    kernels = [np.asarray(variables["params"][f"kernel_{i}"], np.float64) for i in (0, 1)]
    assert kernels[0].shape == (5, 5)  # hidden layers are as wide as the input, if nothing else is said
    hidden = np.maximum(_standardized(np.asarray(features, np.float64) @ kernels[0], 1e-3), 0)
    np.testing.assert_allclose(y, _standardized(hidden @ kernels[1], 1e-3), atol=1e-3)


def test_layers_without_a_norm_may_have_an_offset(key, features):
    """SimSiam's predictor has one behind its last layer alone; MoCo v2's head has no norm and two."""
    names = {}
    for hidden_norm in (True, False):
        head = ProjectionHead(
            hidden_dim=7, out_dim=4, hidden_norm=hidden_norm, last_norm="none", use_bias=True, dtype=jnp.bfloat16
        )
        variables = jax.eval_shape(lambda head=head: head.init(key, features, train=True))
        names[hidden_norm] = set(named_leaves(variables["params"]))
    kernels = {"kernel_0", "kernel_1"}
    assert names[True] == kernels | {"norm_0/norm/scale", "norm_0/norm/bias", "offset_1/bias"}
    assert names[False] == kernels | {"offset_0/bias", "offset_1/bias"}


def test_a_head_without_norms_is_dense_offset_relu_dense_offset(key, features):
    head = ProjectionHead(hidden_dim=7, out_dim=4, hidden_norm=False, last_norm="none", use_bias=True)
    params = head.init(key, features, train=True)["params"]
    params |= {"offset_0": {"bias": jnp.arange(7.0)}, "offset_1": {"bias": jnp.arange(4.0)}}
    x = np.asarray(features, np.float64)
    hidden = np.maximum(x @ np.asarray(params["kernel_0"], np.float64) + np.arange(7.0), 0)
    expected = hidden @ np.asarray(params["kernel_1"], np.float64) + np.arange(4.0)
    y = head.apply({"params": params}, features, train=True)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


def test_the_projector_gives_float32_under_bfloat16(key, features):
    head = ProjectionHead(out_dim=4, dtype=jnp.bfloat16)
    assert jax.eval_shape(lambda: head.init_with_output(key, features, train=True)[0]).dtype == jnp.float32


def test_a_classifier_of_deviation_zero_starts_from_equal_logits(key, features):
    logits, _ = LinearHead(num_classes=3, init_std=0.0).init_with_output(key, features, train=True)
    np.testing.assert_array_equal(logits, np.zeros((16, 3)))


def test_a_classifier_draws_its_kernel_with_the_deviation_asked_for(key):
    kernel = LinearHead(num_classes=50, init_std=0.02).init(key, jnp.ones((1, 400), jnp.float32), train=True)
    np.testing.assert_allclose(np.std(kernel["params"]["logits"]["kernel"]), 0.02, rtol=0.05)


def test_a_classifier_with_batch_norm_standardises_without_learned_factors(key, features):
    head = LinearHead(num_classes=3, init_std=1.0, batch_norm=True, dtype=jnp.bfloat16)
    logits, variables = head.init_with_output(key, features, train=True)
    assert logits.dtype == jnp.float32
    assert list(named_leaves(variables["params"])) == ["logits/bias", "logits/kernel"]
    kernel = np.asarray(variables["params"]["logits"]["kernel"], np.float64)
    np.testing.assert_allclose(logits, _standardized(features, 1e-6) @ kernel, rtol=2e-2, atol=5e-2)


def test_a_classifier_may_normalise_its_input_by_example_and_have_no_offset(key, features):
    head = LinearHead(num_classes=3, init_std=1.0, layer_norm=True, use_bias=False)
    logits, variables = head.init_with_output(key, features, train=True)
    assert list(named_leaves(variables["params"])) == ["logits/kernel", "norm/bias", "norm/scale"]
    kernel = np.asarray(variables["params"]["logits"]["kernel"], np.float64)
    np.testing.assert_allclose(logits, _standardized(np.asarray(features).T, 1e-5).T @ kernel, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="not both"):
        LinearHead(num_classes=3, batch_norm=True, layer_norm=True).init(key, features, train=True)


DINO_HEADS = ("dino_head_v1", "dino_head_v1_b", "dino_head_v2")


@pytest.mark.parametrize("name", DINO_HEADS)
def test_the_head_of_dino_equals_the_authors_with_its_gradients(golden_directory, name):
    golden = np.load(golden_directory / f"components/{name}.npz")
    sizes = json.loads(str(golden["meta"]))["config"]
    num_layers = sizes["nlayers"]
    head = DinoHead(sizes["out_dim"], sizes["hidden"], sizes["bottleneck"], num_layers, learned_scale=True)

    def ours(prefix):
        params = {
            f"layer_{i}": {
                "kernel": jnp.asarray(golden[f"{prefix}/mlp.{2 * i}.weight"].T),
                "bias": jnp.asarray(golden[f"{prefix}/mlp.{2 * i}.bias"]),
            }
            for i in range(num_layers)
        }
        scale = jnp.asarray(golden[f"{prefix}/last_layer.weight_g"][:, 0])
        return params | {
            "prototypes": {"kernel": jnp.asarray(golden[f"{prefix}/last_layer.weight_v"].T), "scale": scale}
        }

    params, x = ours("param"), jnp.asarray(golden["x"])
    y, pull_back = jax.vjp(lambda params, x: head.apply({"params": params}, x), params, x)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(y, golden["y"], **close)
    bottleneck = head.apply({"params": params}, x, method="bottleneck")
    np.testing.assert_allclose(bottleneck, golden["bottleneck"], **close)
    grads, grad_x = pull_back(jnp.asarray(golden["cotangent"]))
    np.testing.assert_allclose(grad_x, golden["grad_x"], **close)
    expected = named_leaves(ours("grad"))
    for leaf, grad in named_leaves(grads).items():
        np.testing.assert_allclose(grad, expected[leaf], **close, err_msg=leaf)


def test_prototypes_without_a_scale_of_their_own_are_unit_vectors(key):
    head = DinoHead(out_dim=7, hidden_dim=6, bottleneck_dim=4, dtype=jnp.bfloat16)
    x = jax.random.normal(key, (2, 3, 5), jnp.float32)
    y, variables = head.init_with_output(key, x)
    assert y.shape == (2, 3, 7)
    assert y.dtype == jnp.float32
    assert "prototypes/scale" not in named_leaves(variables["params"])
    assert np.abs(y).max() <= 1.01


@pytest.mark.parametrize("name", ["mocov3_mlp", "mocov3_mlp_b"])
def test_the_heads_of_moco_v3_equal_the_authors(golden_directory, name):
    golden = np.load(golden_directory / f"components/{name}.npz")
    sizes = json.loads(str(golden["meta"]))["config"]
    hidden, out = sizes["dims"][1:]
    last_norm = "plain" if sizes["last_bn"] else "none"
    head = ProjectionHead(hidden, out, sizes["num_layers"], last_norm=last_norm, unbiased=True)
    x = jnp.asarray(golden["x"])
    variables = jax.eval_shape(lambda: head.init(jax.random.key(0), x, train=True))
    params, running = {}, {}
    for i in range(sizes["num_layers"]):
        params[f"kernel_{i}"] = jnp.asarray(golden[f"param/{3 * i}.weight"].T)
        norm = f"param/{3 * i + 1}"
        if f"{norm}.weight" in golden:
            own = {"scale": jnp.asarray(golden[f"{norm}.weight"]), "bias": jnp.asarray(golden[f"{norm}.bias"])}
            params[f"norm_{i}"] = {"norm": own}
        if f"{norm}.running_mean" in golden:
            own = {
                "mean": jnp.asarray(golden[f"{norm}.running_mean"]),
                "var": jnp.asarray(golden[f"{norm}.running_var"]),
            }
            running[f"norm_{i}"] = {"norm": own}
    state = {"params": params, "batch_stats": running}
    assert {k: v.shape for k, v in named_leaves(state).items()} == {
        k: v.shape for k, v in named_leaves(variables).items()
    }
    y, after = head.apply(state, x, train=True, mutable=["batch_stats"])
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(y, golden["y_train"], **close)
    for leaf, value in named_leaves(after["batch_stats"]).items():
        layer, kind = int(leaf.split("/")[0].removeprefix("norm_")), leaf.rsplit("/", 1)[1]
        np.testing.assert_allclose(value, golden[f"after/{3 * layer + 1}.running_{kind}"], **close)
    again = head.apply({"params": params, **after}, x, train=False)
    np.testing.assert_allclose(again, golden["y_eval_after"], **close)


def test_an_unknown_last_norm_is_refused(key, features):
    with pytest.raises(UserError, match="scale, plain, none"):
        ProjectionHead(last_norm="batch").init(key, features, train=True)


def test_prototypes_of_any_length_are_a_linear_layer(key, features):
    head = DinoHead(out_dim=7, hidden_dim=6, bottleneck_dim=4, unit_prototypes=False)
    logits, variables = head.init_with_output(key, features)
    narrow = head.apply(variables, features, method="bottleneck")
    np.testing.assert_allclose(logits, narrow @ variables["params"]["prototypes"]["kernel"], rtol=1e-5, atol=1e-6)


def test_a_zero_feature_has_a_finite_gradient_in_the_head_of_dino(key):
    head = DinoHead(out_dim=7, hidden_dim=6, bottleneck_dim=4)
    x = jnp.zeros((2, 5), jnp.float32)
    variables = head.init(key, x)
    grads = jax.grad(lambda v, x: jnp.sum(jnp.sin(1 + head.apply(v, x))), argnums=(0, 1))(variables, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
