"""Arithmetic of matrix products and convolutions, counted from what JAX traces: nothing is compiled or run."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal


class Flops(NamedTuple):
    """Operations, a multiplication and an addition being two.

    Attributes:
        forward: of the function.
        backward: of its gradient besides: once more for each operand that the gradient passes through.
    """

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def model_flops(function: Callable[..., Any], trained: Any, *fixed: Any) -> Flops:
    """What the value of `function(trained, *fixed)` and its gradient to `trained` take, nothing computed twice.

    These are the operations by which a model's use of a device is measured (MFU: Chowdhery et al., PaLM, 2022,
    arXiv:2204.02311, App. B): what rematerialization computes again does not count. Only products and convolutions
    do, which are nearly everything; a convolution's padding counts as if it were pixels, and the gradient through a
    product counts even where nothing is made of its result.

    Args:
        function: to be differentiated; its loops have a known length (`lax.scan`), another counts once.
        trained: tree of arrays, or their shapes, that the gradient is taken to.
        fixed: its other arguments.
    """
    closed = jax.make_jaxpr(function)(trained, *fixed)
    num_trained = len(jax.tree.leaves(trained))
    tainted = [i < num_trained for i in range(len(closed.jaxpr.invars))]
    return _count(closed.jaxpr, tainted)[0]


def jaxpr_flops(closed: ClosedJaxpr) -> int:
    """What one run of a program takes as it is written: gradients and rematerialization that it contains included."""
    return _count(closed.jaxpr, [False] * len(closed.jaxpr.invars))[0].forward


def _count(jaxpr: Jaxpr, tainted: Sequence[bool]) -> tuple[Flops, list[bool]]:
    """Operations, and which results the gradient passes through, given through which arguments it does."""
    passes = dict(zip(jaxpr.invars, tainted, strict=True))
    forward = backward = 0

    def of(atom: Any) -> bool:
        return not isinstance(atom, Literal) and passes.get(atom, False)

    for eqn in jaxpr.eqns:
        found, out = _equation(eqn, [of(atom) for atom in eqn.invars])
        forward, backward = forward + found.forward, backward + found.backward
        for var, flows in zip(eqn.outvars, out, strict=True):
            passes[var] = flows and jnp.issubdtype(getattr(var.aval, "dtype", jnp.int32), jnp.inexact)
    return Flops(forward, backward), [of(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, tainted: list[bool]) -> tuple[Flops, list[bool]]:
    name, params = eqn.primitive.name, eqn.params
    anywhere = [any(tainted)] * len(eqn.outvars)
    if name in ("dot_general", "conv_general_dilated"):
        forward = _product(eqn)
        return Flops(forward, forward * sum(tainted)), anywhere
    if name == "stop_gradient":
        return Flops(0, 0), [False] * len(eqn.outvars)
    if name == "scan":
        return _scan(_open(params["jaxpr"]), params["length"], params["num_consts"], params["num_carry"], tainted)
    if name == "cond":
        given = tainted[1:]
        branches = [_count(_open(branch), given) for branch in params["branches"]]
        dearest = max(branches, key=lambda branch: branch[0].total)[0]
        return dearest, [any(flows) for flows in zip(*(out for _, out in branches), strict=True)]
    if name == "while":
        skipped, consts = params["cond_nconsts"], params["body_nconsts"]
        given = tainted[skipped:]
        return _scan(_open(params["body_jaxpr"]), 1, consts, len(given) - consts, given)
    inner = [value for value in params.values() if isinstance(value, Jaxpr | ClosedJaxpr)]
    if len(inner) == 1 and len(_open(inner[0]).invars) == len(tainted):  # a call: jit, remat, custom_vjp, ...
        return _count(_open(inner[0]), tainted)
    return Flops(0, 0), anywhere


def _scan(
    jaxpr: Jaxpr, length: int, num_consts: int, num_carry: int, tainted: list[bool]
) -> tuple[Flops, list[bool]]:
    carry = tainted[num_consts : num_consts + num_carry]
    while True:  # what flows into the carry in one turn is there in the next
        given = [*tainted[:num_consts], *carry, *tainted[num_consts + num_carry :]]
        found, out = _count(jaxpr, given)
        grown = [before or after for before, after in zip(carry, out[:num_carry], strict=True)]
        if grown == carry:
            return Flops(length * found.forward, length * found.backward), out
        carry = grown


def _product(eqn: JaxprEqn) -> int:
    left, right, result = (getattr(atom.aval, "shape", ()) for atom in (*eqn.invars, *eqn.outvars))
    results = math.prod(result)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * results * math.prod(left[dim] for dim in contracted)
    outputs = right[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * results * math.prod(right) // outputs


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
