"""Operations counted from a trace: by hand, by the compiler, and the same whatever is computed again."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vfm_jax.core.flops import Flops, jaxpr_flops, model_flops


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_product_costs_its_backward_twice_where_both_operands_are_trained_and_once_where_one_is():
    assert model_flops(lambda w, x: (x @ w).sum(), shape(5, 7), shape(3, 5)) == Flops(2 * 3 * 5 * 7, 2 * 3 * 5 * 7)
    assert model_flops(lambda w: (w @ w).sum(), shape(4, 4)) == Flops(2 * 4**3, 2 * 2 * 4**3)


def test_nothing_flows_through_stop_gradient_integers_or_what_is_not_trained():
    def loss(w, x):
        teacher = x @ jax.lax.stop_gradient(w)
        chosen = jax.nn.one_hot(jnp.argmax(w[:3], axis=1), 7) @ jnp.ones((7, 2))
        return teacher.sum() + chosen.sum()

    assert model_flops(loss, shape(5, 7), shape(3, 5)) == Flops(2 * 3 * 5 * 7 + 2 * 3 * 7 * 2, 0)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_without_padding_is_what_the_compiler_counts(groups):
    def convolve(kernel, x):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    kernel, x = shape(3, 3, 4 // groups, 6), shape(2, 9, 9, 4)
    found = model_flops(lambda kernel, x: convolve(kernel, x).sum(), kernel, x)
    counted = jax.jit(convolve).lower(kernel, x).compile().cost_analysis()["flops"]
    assert found.forward == counted == 2 * 2 * 16 * 6 * 9 * 4 // groups
    assert found.backward == found.forward


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(16)(jnp.tanh(nn.Dense(32)(x)))


def forms():
    layer = Layer()
    params = jax.eval_shape(lambda key: layer.init(key, jnp.ones((1, 16))), jax.random.key(0))
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), params)

    def looped(stacked, x, apply=layer.apply):
        for i in range(3):
            x = apply(jax.tree.map(lambda leaf, i=i: leaf[i], stacked), x)
        return jnp.square(x).mean()

    def scanned(stacked, x, apply=layer.apply):
        return jnp.square(jax.lax.scan(lambda x, params: (apply(params, x), None), x, stacked)[0]).mean()

    again = jax.checkpoint(layer.apply)
    return stacked, {
        "loop": looped,
        "jit": jax.jit(looped),
        "scan": scanned,
        "remat": lambda stacked, x: looped(stacked, x, again),
        "scan and remat": lambda stacked, x: scanned(stacked, x, again),
    }


@pytest.mark.parametrize("form", ["loop", "jit", "scan", "remat", "scan and remat"])
def test_the_models_operations_are_the_same_in_every_form(form):
    stacked, functions = forms()
    x = shape(8, 16)
    forward = 3 * 2 * 8 * 2 * 16 * 32
    # The first layer's input is not trained: one operand less, but in a scan, all of whose turns are the same.
    first = 0 if "scan" in form else 2 * 8 * 16 * 32
    found = model_flops(functions[form], stacked, x)
    assert found == Flops(forward, 2 * forward - first)
    # Each layer's first product is computed again; the second one's result is not needed for its gradient.
    assert (
        jaxpr_flops(jax.make_jaxpr(jax.grad(functions[form]))(stacked, x))
        == found.total + ("remat" in form) * forward // 2
    )


def test_a_gradient_written_by_hand_counts_as_any_other():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert model_flops(lambda a, b: product(a, b).sum(), shape(3, 4), shape(4, 5)) == Flops(120, 120)


def test_of_branches_the_dearest_counts_and_a_loop_of_unknown_length_once():
    def loss(w, x):
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x)
        return jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ jax.lax.stop_gradient(w), x).sum()

    assert model_flops(loss, shape(4, 4), shape(2, 4)) == Flops(3 * 2 * 2 * 16, (1 + 2 + 1) * 2 * 2 * 16)
