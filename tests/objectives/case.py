"""What the table-driven test of all objectives knows of one method; `cases_*.py` beside it fill the table.

Each has CASES = {"method": Case(...)}. (`from tests.objectives.case import Case, tiny_vit, ...`)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vfm_jax.models import MODELS
from vfm_jax.objectives.interface import Objective

BATCH = 8
HEIGHT, WIDTH = 8, 12  # of a view; patches of 4 make a grid of 2 x 3


def tiny_vit(**fields: Any) -> Any:
    """Mean pooling: the class tokens of a fresh ViT are nearly equal, and batch norm would blow up their rounding."""
    return MODELS["vit"](
        **({"variant": "mu/4", "width": 16, "depth": 1, "heads": 2, "mlp_dim": 24, "pooling": "mean"} | fields)
    )


def projector(**fields: Any) -> Any:
    """A small MLP with batch norm."""
    return MODELS["projection_head"](**({"hidden_dim": 12, "out_dim": 10, "num_layers": 2} | fields))


@dataclasses.dataclass(frozen=True)
class Case:
    """One method on tiny networks.

    Attributes:
        make: builds the objective (with schedules that move, where it has any).
        views: field -> shape behind the batch axis: {"image": (2, HEIGHT, WIDTH, 3)}.
        still: regular expressions of parameter leaves that get no gradient; every other leaf must get one.
        teacher: "teacher" or "target" -> step -> momentum of that average, where the method has one.
        hidden: outputs -> (b n) which patches of `views["image"]` the encoder must not see; None for no such promise.
        seen: outputs -> what must not change when those patches do.
        more: further fields of the batch, as a function of the batch size (captions).
        learning_rate: of plain SGD, for the loss to fall on one repeated batch of real images.
        steps: that it is given for it.
    """

    make: Callable[[], Objective]
    views: Mapping[str, tuple[int, ...]]
    still: tuple[str, ...] = ()
    teacher: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)
    hidden: Callable[[Any], jax.Array] | None = None
    seen: Callable[[Any], Any] | None = None
    more: Callable[[int], Mapping[str, Any]] = lambda b: {}
    learning_rate: float = 0.1
    steps: int = 12


def batch_of(case: Case, size: int = BATCH, seed: int = 2) -> dict[str, Any]:
    """Noise in the shape of the case's views; labels, indices, epochs."""
    keys = jax.random.split(jax.random.key(seed), len(case.views))
    made = {
        field: jax.random.normal(key, (size, *shape), jnp.float32)
        for key, (field, shape) in zip(keys, sorted(case.views.items()), strict=True)
    }
    index = jnp.arange(size) * 3 + 1
    return made | {
        "label": index % 5,
        "index": index,
        "epoch": jnp.full(size, 2, jnp.int32),
        "valid": jnp.ones(size, bool),
        **case.more(size),
    }
