"""Averages of the weights whose length is chosen after training.

Two averages of power-function profiles are tracked, p(k) ∝ k^γ over the updates k so far, and saved now and then. Any
other such profile, also one that ends earlier, is then nearly a linear combination of the saved ones.

Reference: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, 2023 (arXiv:2312.02696),
Sec. 3.1 and 3.2, and Algorithms 2 and 3. A profile is named by its width σ_rel: its standard deviation as a share of
the training so far, 0.05 to 0.25.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.optim.ema import update_ema

WIDEST = 12**-0.5  # of γ = 0: the plain mean


def power_exponent(sigma_rel: float) -> float:
    """γ of the profile whose width is `sigma_rel`: σ² = (γ + 1) / ((γ + 2)² (γ + 3)).

    Raises:
        UserError: a width that no growing profile has.
    """
    if not 0.0 < sigma_rel < WIDEST:
        raise UserError(f"sigma_rel is {sigma_rel}; expected a width between 0 and {WIDEST:.3f}, such as 0.05.")
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def power_momentum(step: int | jax.Array, exponent: float) -> jax.Array:
    """The momentum at update `step`, counted from 0, that keeps the profile: (1 - 1/k)^(γ + 1) with k = step + 1.

    The average of n updates then weighs update k by (k/n)^(γ + 1) - ((k - 1)/n)^(γ + 1), and the start not at all.
    """
    age = jnp.asarray(step, jnp.int32).astype(jnp.float32) + 1.0
    return jnp.exp((exponent + 1.0) * jnp.log1p(-1.0 / age))


class Tracker(NamedTuple):
    """Averages that are tracked in training, by name: profile_0, profile_1, ...

    Attributes:
        start: parameters -> the averages before the first update.
        update: (averages, parameters after update `step`, step) -> the averages after it; steps count from 0.
    """

    start: Callable[[Any], dict[str, Any]]
    update: Callable[[dict[str, Any], Any, jax.Array], dict[str, Any]]


def track_profiles(*, sigma_rel: Sequence[float] = (0.05, 0.1)) -> Tracker:
    """Averages of these widths; two make all others.

    Raises:
        UserError: a width that cannot be.
    """
    exponents = {f"profile_{i}": power_exponent(width) for i, width in enumerate(sigma_rel)}

    def start(params: Any) -> dict[str, Any]:
        return {name: jax.tree.map(jnp.copy, params) for name in exponents}

    def update(averages: dict[str, Any], params: Any, step: jax.Array) -> dict[str, Any]:
        return {
            name: update_ema(averages[name], params, power_momentum(step, exponent))
            for name, exponent in exponents.items()
        }

    return Tracker(start, update)


def combination(
    saved: Sequence[int], tracked: Sequence[float], sigma_rel: float, step: int | None = None
) -> np.ndarray:
    """The factors with which saved averages sum to the profile nearest to the one asked for, in least squares.

    Args:
        saved: numbers of updates after which the averages were saved.
        tracked: widths of the averages, each saved every time.
        sigma_rel: the width asked for.
        step: number of updates at which the profile ends; None for the last saved.

    Returns:
        (saves, profiles) float64.

    Raises:
        UserError: a width that cannot be, or nothing is saved up to `step`.
    """
    end = max(saved) if step is None else step
    if not any(s <= end for s in saved):
        raise UserError(f"No average was saved in the first {end} steps.")
    exponents = np.array([power_exponent(width) for width in tracked])
    times, gammas = np.repeat(np.array(saved, np.float64), len(tracked)), np.tile(exponents, len(saved))
    overlaps = _overlap(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _overlap(times, gammas, np.array(float(end)), np.array(power_exponent(sigma_rel)))
    usable = times <= end  # what came later has no part in a profile that ends here
    factors = np.zeros(len(times))
    factors[usable] = np.linalg.lstsq(overlaps[np.ix_(usable, usable)], wanted[usable], rcond=None)[0]
    return factors.reshape(len(saved), len(tracked))


def _overlap(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """∫ p_a p_b over time, for the profiles (γ + 1) τ^γ / t^(γ + 1) on [0, t]."""
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
    return scale * ratio ** np.where(t_a < t_b, gamma_b, gamma_a)
