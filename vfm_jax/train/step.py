"""One training step, and the gradient of an objective on the effective batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vfm_jax.core.flops import Flops, model_flops
from vfm_jax.core.keys import key_for
from vfm_jax.core.trees import split_flowing
from vfm_jax.core.types import Batch, Measurements
from vfm_jax.experiment import Objective, observe_embedding, observe_shares
from vfm_jax.train.state import TrainState

Views = Callable[[jax.Array, Batch], Batch]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    views: Views,
    *,
    seed: int,
    stage: int = 0,
    num_micro_batches: int = 1,
    log_every_steps: int = 1,
    update_ema: Callable[[Any, Any, jax.Array], Any] | None = None,
    update_profiles: Callable[[Any, Any, jax.Array], Any] | None = None,
    fetch: Callable[[Any, Any], Any] = lambda tree, after: tree,
    schedule: Callable[[jax.Array], jax.Array],
) -> Callable[[TrainState, Batch], tuple[TrainState, Measurements]]:
    """The pure function (state, host batch) -> (state after one update, measurements).

    Measurements hold what the objective reports, what `objectives.observe` sees (NaN in all steps but every
    `log_every_steps`-th, the ones that are logged), and `learning_rate`, `gradient_norm`, and `leaf_gradient_norms`
    (one number per parameter leaf in tree order, looked at when something is not finite). `fetch(tree, after)` brings
    a part of the state that is kept elsewhere, once what stands in `after` is there: moments after the gradients, and
    averages after the new parameters.
    """
    update = optax.with_extra_args_support(optimizer).update

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measurements]:
        batch = views(key_for(seed, 0, "views", stage), batch)  # examples differ by their own index and epoch
        key = key_for(seed, state.step, "forward", stage)
        due = (state.step + 1) % log_every_steps == 0
        grads, extra, measured = gradients(
            objective, state.params, state.extra, batch, key, state.step, num_micro_batches, due
        )

        def gradient(params: Any) -> Any:
            """That of this very step at other parameters, for an optimizer that asks."""
            return gradients(objective, params, state.extra, batch, key, state.step, num_micro_batches, False)[0]

        moments = fetch(state.opt_state, grads)
        updates, opt_state = update(grads, moments, state.params, gradient=gradient)
        params = objective.constrain(optax.apply_updates(state.params, updates))
        extra = objective.after_update(params, extra, state.step)
        ema, profiles = fetch(state.ema, params), fetch(state.profiles, params)
        ema = update_ema(ema, params, state.step) if update_ema else ema
        profiles = update_profiles(profiles, params, state.step) if update_profiles else profiles
        squares = jnp.stack([jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)])
        measured = measured | {
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "gradient_norm": jnp.sqrt(jnp.sum(squares)),
            "leaf_gradient_norms": jnp.sqrt(squares),
        }
        return TrainState(state.step + 1, params, extra, opt_state, ema, profiles), measured

    return step


def step_flops(objective: Objective, views: Views, state: TrainState, batch: Batch) -> Flops:
    """Operations of the networks and the loss on a batch, and of their gradient; the views' are not counted.

    Args:
        objective: the method.
        views: device function from a host batch to what the objective takes.
        state: arrays, or their shapes.
        batch: likewise, of the host.
    """

    def loss(params: Any, extra: Any, batch: Batch, key: jax.Array, step: jax.Array) -> jax.Array:
        batch = objective.draw(batch, key, step)
        outputs, extra = objective.forward(params, extra, batch, key, step)
        return objective.criterion(params, extra, outputs, step)[0]

    key = jax.random.key(0)
    seen = jax.eval_shape(views, key, batch)
    return model_flops(loss, state.params, state.extra, seen, key, state.step)


def gradients(
    objective: Objective,
    params: Any,
    extra: Any,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    num_micro_batches: int = 1,
    observed: jax.Array | bool = True,
) -> tuple[Any, Any, Measurements]:
    """Gradient of the loss on the whole batch, the carried values after it, and the measurements.

    With micro-batches the result is that of the one big batch, for every objective (up to the order of sums):
    separable losses are averaged; for the others all outputs are computed first without a graph, the criterion is
    differentiated once on all of them, then each micro-batch is run again and pulled back ("gradient caching":
    Gao et al., 2021, arXiv:2101.06983).

    Args:
        objective: the method.
        params: of its networks.
        extra: what it carries.
        batch: views, with `index` and `epoch`.
        key: of the step.
        step: number of updates so far.
        num_micro_batches: parts that go through the networks one after another.
        observed: whether this step is one that `objectives.observe` looks at.
    """
    batch = objective.draw(batch, key, step)

    def criterion(params: Any, extra: Any, outputs: Any) -> tuple[jax.Array, tuple[Any, Measurements]]:
        loss, (after, measured) = objective.criterion(params, extra, outputs, step)
        return loss, (after, measured | observe_shares(objective, params, extra, outputs, step, observed))

    def loss_of(params: Any, extra: Any, batch: Batch) -> tuple[jax.Array, tuple[Any, Measurements, jax.Array]]:
        outputs, extra = objective.forward(params, extra, batch, key, step)
        loss, (extra, measured) = criterion(params, extra, outputs)
        return loss, (extra, measured, objective.embedding(outputs))

    if num_micro_batches == 1:
        grads, (extra, measured, embedding) = jax.grad(loss_of, has_aux=True)(params, extra, batch)
        return grads, extra, measured | observe_embedding(embedding, observed)

    micro = _split(batch, num_micro_batches)
    zeros = jax.tree.map(jnp.zeros_like, params)

    if objective.separable:

        def accumulate(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], tuple[Measurements, jax.Array]]:
            total, extra = carry
            grads, (extra, measured, embedding) = jax.grad(loss_of, has_aux=True)(params, extra, part)
            return (jax.tree.map(jnp.add, total, grads), extra), (measured, embedding)

        (total, extra), (measured, embeddings) = jax.lax.scan(accumulate, (zeros, extra), micro)
        mean = jax.tree.map(lambda total: total / num_micro_batches, total)
        measured = jax.tree.map(lambda values: jnp.mean(values, axis=0), measured)
        return mean, extra, measured | observe_embedding(_join(embeddings), observed)

    def run(extra: Any, part: Batch) -> tuple[Any, Any]:
        outputs, moved = objective.forward(params, extra, part, key, step)
        return moved, (outputs, extra)

    moved, (outputs, extra_before) = jax.lax.scan(run, extra, micro)
    outputs = _join(outputs)
    differentiable, rest, rebuild = split_flowing(outputs)

    def joint(params: Any, differentiable: list[jax.Array]) -> tuple[jax.Array, tuple[Any, Measurements]]:
        return criterion(params, moved, rebuild(differentiable, rest))

    (grads, pulls), (extra, measured) = jax.grad(joint, argnums=(0, 1), has_aux=True)(params, differentiable)

    def pull_back(total: Any, part: tuple[Batch, Any, list[jax.Array]]) -> tuple[Any, None]:
        one, extra, pull = part
        _, back = jax.vjp(lambda p: split_flowing(objective.forward(p, extra, one, key, step)[0])[0], params)
        return jax.tree.map(jnp.add, total, back(pull)[0]), None

    grads, _ = jax.lax.scan(pull_back, grads, (micro, extra_before, _split(pulls, num_micro_batches)))
    return grads, extra, measured | observe_embedding(objective.embedding(outputs), observed)


def _split(tree: Any, parts: int) -> Any:
    # Micro-batch j takes rows j, j + parts, ...: every device keeps the rows it has.
    return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), 1, 0), tree)


def _join(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:]), tree)
