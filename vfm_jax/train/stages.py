"""Stages: overlays of one recipe run one after another, and what each takes over from the one before."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vfm_jax.core.durations import other_units
from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import check_used, first_match, map_named, named_leaves
from vfm_jax.experiment import RUN_FIELDS, Variables, resample_positions


class Stage(NamedTuple):
    """One stage of a recipe.

    Attributes:
        name: also the name of its folder of checkpoints.
        carry: regular expressions; parameters whose names match one start from the stage before (or `start_from`).
        recipe: fields of `experiment.build_experiment`.
    """

    name: str
    carry: tuple[str, ...]
    recipe: dict[str, Any]


def read_stages(recipe: Mapping[str, Any]) -> list[Stage]:
    """The stages of a recipe in the order they run; a recipe without stages is one, called "train".

    `recipe["stages"]` is a tuple of dicts; each has a `name`, may say with `carry` which parameters it takes over
    (default: all that it has), and otherwise overlays the fields of the recipe. A dict of another `name` replaces
    the recipe's, one of the same name (or none) is merged into it, None removes a field, and a duration in one unit
    replaces the recipe's in another.

    Raises:
        UserError: a stage without a name, two of one name, or an unusable name.
    """
    base = {k: v for k, v in _plain(recipe).items() if k not in RUN_FIELDS}
    overlays = recipe.get("stages") or ({"name": "train", "carry": recipe.get("carry", (".*",))},)
    stages: list[Stage] = []
    for i, overlay in enumerate(overlays):
        fields = _plain(overlay)
        name = fields.pop("name", None)
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise UserError(f"config.stages[{i}] has the name {name!r}; give it one of letters, digits, - and _.")
        if any(stage.name == name for stage in stages):
            raise UserError(f"config.stages has two stages called {name!r}; their checkpoints need different names.")
        carry = fields.pop("carry", (".*",))
        merged = _overlay(base, fields)
        stages.append(Stage(name, (carry,) if isinstance(carry, str) else tuple(carry), merged))
    return stages


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, Mapping) or hasattr(v, "to_dict") else v for k, v in config.items()}


def _overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for field, value in changes.items():
        for twin in other_units(field):
            merged.pop(twin, None)
        if value is None:
            merged.pop(field, None)
        elif _is_same_thing(merged.get(field), value):
            merged[field] = _overlay(merged[field], value)
        else:
            merged[field] = value
    return merged


def _is_same_thing(old: Any, new: Any) -> bool:
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    return both and new.get("name", old.get("name")) == old.get("name")


class Donor(NamedTuple):
    """What a stage may start from.

    Attributes:
        variables: all that was trained and carried, as host arrays.
        result: what it is evaluated by: averaged, or the teacher's.
        objective: the name of its method.
        origin: where it is from, for the account.
    """

    variables: Variables
    result: Variables
    objective: str
    origin: str


def carry_over(
    own: Variables,
    donor: Donor,
    patterns: tuple[str, ...],
    objective: str,
    after_load: Callable[[Any, Any], Any] = lambda params, extra: extra,
) -> tuple[Variables, str]:
    """Fresh variables with those leaves replaced that `patterns` name and the donor has; and an account of them.

    A stage of the same method goes on with everything: student, teacher, centre, queue. Another method starts from
    the donor's result, and with it come the batch statistics. Learned positions are resampled to the grid of a stage
    with images of another size.

    Args:
        own: fresh, sharded; what is taken over gets their sharding.
        donor: what is taken from.
        patterns: regular expressions over leaf names; each must match a leaf of the parameters.
        objective: the stage's method.
        after_load: the method's; sets what it carries by what the donor is evaluated by, before its own leaves are
            taken over: what begins as a teacher begins as the one that comes along.

    Raises:
        UserError: a pattern matches nothing here, nothing at all is taken over, or a shape differs.
    """
    given = donor.variables if donor.objective == objective else donor.result
    params, account = _carry_params(own.params, given.params, patterns, donor.origin)
    result, _ = _carry_params(own.params, donor.result.params, patterns, donor.origin)
    extra = after_load(result, own.extra)
    carried = named_leaves(given.extra)

    def choose(name: str, leaf: jax.Array) -> jax.Array:
        fits = name in carried and first_match(name, patterns) is not None and _fits(name, carried[name], leaf)
        return _placed(carried[name], leaf) if fits else leaf

    return Variables(params, map_named(choose, extra)), account


def _fits(name: str, value: Any, like: jax.Array) -> bool:
    """Whether a leaf can be taken over: it has the same shape, or is a table of positions for another grid."""
    table = name.rsplit("/", 1)[-1] == "positions" and value.ndim == like.ndim == 3
    return value.shape == like.shape or (table and value.shape[2] == like.shape[2])


def _placed(value: Any, like: jax.Array) -> jax.Array:
    value = np.asarray(value)
    if value.shape != like.shape:
        value = resample_positions(value, (like.shape[0], like.shape[1]), "bicubic_antialias")
    value = value.astype(like.dtype)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])


def _carry_params(params: Any, donor: Any, patterns: tuple[str, ...], origin: str) -> tuple[Any, str]:
    own, given = named_leaves(params), named_leaves(donor)
    check_used(patterns, own, "carry")
    wanted = [name for name in own if first_match(name, patterns) is not None]
    taken = [name for name in wanted if name in given]
    if not taken:
        here, there = ({name.split("/")[0] for name in names} for names in (own, given))
        raise UserError(
            f"{origin} has none of the parameters to carry over. It has {', '.join(sorted(there))}; "
            f"this stage has {', '.join(sorted(here))}."
        )
    for name in taken:
        if not _fits(name, given[name], own[name]):
            raise UserError(
                f"{name} has shape {own[name].shape} here and {given[name].shape} in {origin}. "
                "Use the same network, or leave it out of `carry` to start it fresh."
            )

    def choose(name: str, leaf: jax.Array) -> jax.Array:
        return _placed(given[name], leaf) if name in taken else leaf

    fresh = [name for name in own if name not in taken]
    unused = [name for name in given if name not in taken]
    account = [f"From {origin}: {len(taken)} of {len(own)} parameter leaves taken over."]
    account += [f"  {word}: {_groups(names)}" for word, names in (("fresh", fresh), ("not used", unused)) if names]
    return map_named(choose, params), "\n".join(account)


def _groups(names: list[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        group = "/".join(name.split("/")[:2])
        counts[group] = counts.get(group, 0) + 1
    return ", ".join(f"{group} ({count})" if count > 1 else group for group, count in counts.items())
