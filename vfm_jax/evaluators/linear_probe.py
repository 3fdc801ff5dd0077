"""A linear classifier on frozen features: multinomial logistic regression, its strength chosen on held-out images."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.keys import key_for
from vfm_jax.core.tables import build
from vfm_jax.evaluators.features import check_pool, extract
from vfm_jax.evaluators.interface import Batches, Cache, Evaluator, Predict
from vfm_jax.evaluators.ranking import NUM_RANKED, accuracies, map_chunks

CHUNK = 1024  # rows ranked at once
HELD_OUT = 10  # one train image in ten chooses the strength
MAX_LINE_EVALUATIONS = 20


class Solver(NamedTuple):
    """A way to fit the classifier at several strengths at once.

    Attributes:
        fit: `(x, labels, weights, grid, num_classes)` -> a (d, m) matrix for each strength of the grid `g`.
            x is n d, its last column ones; rows of weight zero are left out.
        name: what the strength is.
        grid: the strengths to choose from; of equally good ones the first is taken.
    """

    fit: Callable[..., Float[Array, "g d m"]]
    name: str
    grid: tuple[float, ...]


def lbfgs(
    *,
    l2: float | Sequence[float] = (1.0, 0.1, 0.01, 1e-3, 1e-4),
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    memory_size: int = 10,
) -> Solver:
    """Full-batch L-BFGS, from the strongest to the weakest regularisation, each starting where the last ended.

    Minimises mean cross-entropy + l2/2 ‖W‖² (the bias is free); scikit-learn's C is 1 / (l2 · n). The features and
    about five times the logits (4 · n · m bytes) are held on the device; where that is too much, take "sgd".

    Args:
        l2: strengths to choose from.
        max_iterations: of each strength.
        tolerance: largest entry of the gradient at which it is done.
        memory_size: pairs of differences kept.
    """

    def fit(x, labels, weights, grid, num_classes):
        params, found = jnp.zeros((x.shape[1], num_classes), jnp.float32), []
        for strength in grid:
            params, _ = minimize_logistic(
                x, labels, weights, jnp.float32(strength), params, num_classes, max_iterations, tolerance, memory_size
            )
            found.append(params)
        return jnp.stack(found)

    return Solver(fit, "l2", tuple(sorted(_strengths(l2, "l2", zero_allowed=True), reverse=True)))


def sgd(
    *,
    learning_rates: float | Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
    num_epochs: int = 100,
    batch_size: int = 256,
    momentum: float = 0.9,
) -> Solver:
    """Minibatch SGD with momentum and a cosine schedule to zero, no weight decay, all learning rates in one run.

    The protocol of Caron et al., 2021 (arXiv:2104.14294), Sec. 4.1, on features of one crop.

    Args:
        learning_rates: of a batch, to choose from.
        num_epochs: passes over the train features, each in a new order.
        batch_size: images of a step; all of them where there are fewer.
        momentum: share of the last step kept.
    """
    if num_epochs < 1 or batch_size < 1:
        raise UserError(f"linear_probe: num_epochs={num_epochs} and batch_size={batch_size}; both are 1 or more.")
    return Solver(
        functools.partial(fit_sgd, num_epochs=num_epochs, batch_size=batch_size, momentum=momentum),
        "learning_rate",
        _strengths(learning_rates, "learning_rates", zero_allowed=False),
    )


SOLVERS = {"lbfgs": lbfgs, "sgd": sgd}


def _strengths(values: float | Sequence[float], name: str, *, zero_allowed: bool) -> tuple[float, ...]:
    values = tuple(float(value) for value in (values if isinstance(values, Sequence) else (values,)))
    low = 0.0 if zero_allowed else np.finfo(np.float32).tiny
    if not values or not all(low <= value < np.inf for value in values):
        bound = "0 or more" if zero_allowed else "above 0"
        raise UserError(f"linear_probe: {name} is {values}; expected one or more numbers {bound}.")
    return values


class _Search(NamedTuple):
    """Where a line search stands."""

    step: jax.Array  # the one that was measured last
    value: jax.Array  # loss there
    probabilities: jax.Array  # of the classes there, times the weights of the rows, m n
    accepted: jax.Array
    following: jax.Array  # the step to measure next
    low: jax.Array  # the slope is negative here ...
    low_slope: jax.Array
    high: jax.Array  # ... and positive here
    num_evaluations: jax.Array


class _Progress(NamedTuple):
    """Where the minimisation stands."""

    params: jax.Array  # d m
    logits: jax.Array  # m n
    value: jax.Array
    gradient: jax.Array  # d m
    memory: optax.OptState
    stuck: jax.Array
    num_iterations: jax.Array


@functools.partial(jax.jit, static_argnames=("num_classes", "memory_size"))
def minimize_logistic(
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    l2: Float[Array, ""],
    start: Float[Array, "d m"],
    num_classes: int,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    memory_size: int = 10,
) -> tuple[Float[Array, "d m"], Int[Array, ""]]:
    """The matrix that minimises weighted mean cross-entropy + l2/2 ‖W‖², and the L-BFGS iterations it took.

    The last column of x is ones, and its row of W is free of l2. The logits are linear in the parameters, so along
    a search direction P they are Z + t XP: a line search costs no product with x, and an iteration costs two (XP,
    and the gradient) however often it looks. Steps are taken by the approximate Wolfe conditions of Hager & Zhang,
    2005 (SIAM J. Optim. 16, 170), which hold up where the decrease of the loss is lost in float32's rounding; that
    a slope tells the side of the minimum relies on the loss being convex.
    """
    weights = weights / jnp.sum(weights)
    x = x.T  # d n: both products then run along memory (1.3 times the speed of n d on a CPU)
    decay = l2 * (jnp.arange(len(x)) < len(x) - 1).astype(jnp.float32)[:, None]  # d 1
    transform = optax.scale_by_lbfgs(memory_size)

    def product(pattern, a, b):
        return jnp.einsum(pattern, a, b, precision=jax.lax.Precision.HIGHEST)

    # The logits of the labels enter the loss only as Σ_n w_n z_ny = ⟨W, A⟩, with A the weighted sums of each class.
    targets = jnp.where(jnp.arange(num_classes)[:, None] == labels[None, :], weights[None], 0.0)  # m n
    sums = product("mn,dn->dm", targets, x)

    def measure(params, logits):
        """Loss, and the weighted probabilities (the gradient of its first term by the logits)."""
        largest = jnp.max(logits, axis=0)
        exponent = jnp.exp(logits - largest[None])
        total = jnp.sum(exponent, axis=0)
        value = jnp.sum((largest + jnp.log(total)) * weights) + jnp.sum((0.5 * decay * params - sums) * params)
        return value, exponent * (weights / total)[None]

    def search_line(progress, direction, slopes):
        slope_here = jnp.vdot(progress.gradient, direction)

        def look(search):
            step = search.following
            params = progress.params + step * direction
            value, probabilities = measure(params, progress.logits + step * slopes)
            slope = jnp.sum(probabilities * slopes) + jnp.sum((decay * params - sums) * direction)
            lower = value <= progress.value + 1e-6 * jnp.abs(progress.value)
            accepted = lower & (slope >= 0.9 * slope_here) & (slope <= -0.8 * slope_here)

            # NaN counts as beyond the minimum: only a negative slope says that it lies further on.
            before = slope < 0
            low, high = jnp.where(before, step, search.low), jnp.where(before, search.high, step)
            low_slope = jnp.where(before, slope, search.low_slope)
            top = jnp.where(jnp.isfinite(high), high, 10 * step)
            secant = search.low + (step - search.low) * search.low_slope / (search.low_slope - slope)
            secant = jnp.where(jnp.isfinite(secant), secant, 0.5 * (low + top))
            following = jnp.clip(secant, low + 0.1 * (top - low), top - 0.1 * (top - low))
            count = search.num_evaluations + 1
            return _Search(step, value, probabilities, accepted, following, low, low_slope, high, count)

        zero, one = jnp.float32(0), jnp.float32(1)
        start = _Search(
            zero, zero, jnp.zeros_like(slopes), jnp.bool_(False), one, zero, slope_here, one * jnp.inf, jnp.int32(0)
        )
        return jax.lax.while_loop(
            lambda search: ~search.accepted & (search.num_evaluations < MAX_LINE_EVALUATIONS), look, start
        )

    def iterate(progress):
        newton, memory = transform.update(progress.gradient, progress.memory, progress.params)
        direction = -jnp.asarray(newton)
        slopes = product("dm,dn->mn", direction, x)
        found = search_line(progress, direction, slopes)
        # No step is accepted once the numbers are at their last digit: stay, and stop.
        step = jnp.where(found.accepted, found.step, 0.0)
        params = progress.params + step * direction
        gradient = product("mn,dn->dm", found.probabilities, x) - sums + decay * params
        logits = progress.logits + step * slopes
        num_iterations = progress.num_iterations + found.accepted.astype(jnp.int32)
        return _Progress(params, logits, found.value, gradient, memory, ~found.accepted, num_iterations)

    def unfinished(progress):
        steep = jnp.max(jnp.abs(progress.gradient)) > tolerance
        return steep & ~progress.stuck & (progress.num_iterations < max_iterations)

    logits = product("dm,dn->mn", start, x)
    value, probabilities = measure(start, logits)
    gradient = product("mn,dn->dm", probabilities, x) - sums + decay * start
    first = _Progress(start, logits, value, gradient, transform.init(start), jnp.bool_(False), jnp.int32(0))
    last = jax.lax.while_loop(unfinished, iterate, first)
    return last.params, last.num_iterations


@functools.partial(jax.jit, static_argnames=("num_classes", "num_epochs", "batch_size"))
def fit_sgd(
    x: Float[Array, "n d"],
    labels: Int[Array, " n"],
    weights: Float[Array, " n"],
    learning_rates: Float[Array, " g"],
    num_classes: int,
    *,
    num_epochs: int = 100,
    batch_size: int = 256,
    momentum: float = 0.9,
) -> Float[Array, "g d m"]:
    """Minimises mean cross-entropy by minibatch SGD, once per learning rate, in one scan over the same batches."""
    batch_size = min(batch_size, len(x))
    num_steps = len(x) // batch_size  # per epoch; the rest of an epoch's order is left out
    total_steps = num_epochs * num_steps

    def loss(params, rows, row_labels, row_weights):
        logits = jnp.einsum("bd,gdm->gbm", rows, params, precision=jax.lax.Precision.HIGHEST)
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, row_labels[None, :, None], axis=-1)[..., 0]  # g b
        # Summed over the learning rates: none of them sees another's gradient.
        return -jnp.sum(chosen * row_weights[None]) / jnp.maximum(jnp.sum(row_weights), 1.0)

    def step(state, taken):
        params, velocity, count = state
        gradient = jax.grad(loss)(params, x[taken], labels[taken], weights[taken])
        velocity = momentum * velocity + gradient
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * count.astype(jnp.float32) / total_steps))
        params = params - cosine * learning_rates[:, None, None] * velocity
        return (params, velocity, count + 1), None

    def epoch(state, number):
        order = jax.random.permutation(key_for(0, number, "linear_probe"), len(x))
        return jax.lax.scan(step, state, order[: num_steps * batch_size].reshape(num_steps, batch_size))

    params = jnp.zeros((len(learning_rates), x.shape[1], num_classes), jnp.float32)
    return jax.lax.scan(epoch, (params, params, jnp.int32(0)), jnp.arange(num_epochs))[0][0]


@jax.jit
def _rank(matrix: Float[Array, "d m"], rows: Float[Array, "b d"]) -> Int[Array, "b r"]:
    logits = jnp.matmul(rows, matrix, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(logits, min(NUM_RANKED, matrix.shape[1]))[1]


def _accuracies(
    matrix: Float[Array, "d m"], x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> dict[str, float]:
    return accuracies(map_chunks(functools.partial(_rank, matrix), x, CHUNK), labels, matrix.shape[1])


def linear_probe(*, pool: str = "pooled", solver: str | Mapping[str, Any] = "lbfgs") -> Evaluator:
    """Accuracy on the test split of a logistic regression on standardised train features.

    The solver fits at every strength of its grid on nine tenths of train; the strength that does best on the other
    tenth is fitted again on all of train. Figures: `accuracy` (and `accuracy_top5` where there are more than five
    classes), `train_accuracy`, all in [0, 1], and the strength chosen (`l2` or `learning_rate`).
    A test image of a class that train lacks counts as wrong.

    Args:
        pool: how an image becomes one vector (`features.POOLS`).
        solver: name of one of `SOLVERS`, or a dict of its name and keywords: `dict(name="sgd", num_epochs=30)`.

    Raises:
        UserError: no such pooling or solver, or a keyword it does not know.
    """
    needs = check_pool(pool, "linear_probe")
    spec = {"name": solver} if isinstance(solver, str) else solver
    chosen = build(SOLVERS, spec, "linear_probe.solver")

    def run(predict: Predict, batches: Batches, cache: Cache | None = None) -> dict[str, float]:
        train, test = (
            extract(predict, batches, split, pool, cache=cache, labels_for="linear_probe")
            for split in ("train", "test")
        )
        num_classes = int(max(train.labels.max(), test.labels.max())) + 1
        # The statistics of MAE's probe, a batch norm without affine part (its appendix A.1: eps 1e-6).
        mean, scale = train.features.mean(axis=0), 1 / np.sqrt(train.features.var(axis=0) + 1e-6)
        x, x_test = (_with_ones((split.features - mean) * scale) for split in (train, test))
        matrix, strength = _fit_best(chosen, x, train.labels, num_classes)
        return {
            **_accuracies(matrix, x_test, test.labels),
            "train_accuracy": _accuracies(matrix, x, train.labels)["accuracy"],
            chosen.name: strength,
        }

    return Evaluator(run, needs)


def _with_ones(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
    return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)


def _fit_best(
    solver: Solver, x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], num_classes: int
) -> tuple[Float[Array, "d m"], float]:
    """The fit to all rows at the strength that does best on a tenth of them, fitted on the others."""

    def fit(weights, grid):
        return solver.fit(on_device, jnp.asarray(labels), jnp.asarray(weights, jnp.float32), grid, num_classes)

    on_device = jnp.asarray(x)
    strength = solver.grid[0]
    if len(solver.grid) > 1:
        held_out = np.zeros(len(x), bool)
        held_out[np.random.default_rng(0).permutation(len(x))[: max(1, len(x) // HELD_OUT)]] = True
        fits = fit(~held_out, np.array(solver.grid, np.float32))
        finite = np.asarray(jnp.all(jnp.isfinite(fits), axis=(1, 2)))  # one that diverged ranks classes all the same
        scores = [
            _accuracies(matrix, x[held_out], labels[held_out])["accuracy"] if ok else -1.0
            for matrix, ok in zip(fits, finite, strict=True)
        ]
        strength = solver.grid[int(np.argmax(scores))]
    matrix = fit(np.ones(len(x)), np.array([strength], np.float32))[0]
    if not bool(jnp.all(jnp.isfinite(matrix))):
        raise TrainingError(f"linear_probe: the fit diverged at {solver.name}={strength}. Try a smaller one.")
    return matrix, strength
