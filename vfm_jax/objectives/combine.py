"""A weighted sum of methods over shared networks: SigLIP 2's and TIPS's recipes are configs then, not trainers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.objectives.interface import Objective, Variables
from vfm_jax.optim import Schedule, as_schedule

TEACHER = ("teacher", "teacher_statistics")


class Member(NamedTuple):
    """One method of several.

    Attributes:
        objective: the method.
        label: what its measurements and its part of `extra` are called; no two members have the same.
        weight: of its loss.
        start_steps: updates before its loss counts.
        fields: what it reads under one name and the batch has under another: {"image": "pair"}.
        networks: its role -> the network's name in the recipe, where the two differ: {"head": "patch_head"}.
    """

    objective: Objective
    label: str
    weight: float | Schedule = 1.0
    start_steps: int = 0
    fields: Mapping[str, str] = {}
    networks: Mapping[str, str] = {}


def combine(*, members: Sequence[Member]) -> Objective:
    """loss = Σ_i w_i(step) · loss_i, each member with its own views, randomness, weight and start.

    Networks of one name are one network, whichever members use it. There is one teacher: of a network that several
    members average, the first one's momentum counts. What a member carries beside (centre, queue) is its own.

    Reference: the mixtures of Tschannen et al., SigLIP 2, 2025 (arXiv:2502.14786), Sec. 2, and Maninis et al., TIPS,
    2024 (arXiv:2410.16512), Sec. 3.

    Args:
        members: in the order in which shared networks are initialised, and asked for features and pictures.

    Raises:
        UserError: none, or two of one label.
    """
    labels = [member.label for member in members]
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"combine has the members {', '.join(labels) or 'none'}; give each a `label` of its own.")

    def init(key, batch) -> Variables:
        params, extra = {}, {}
        for member in members:
            made = member.objective.init(key, _read(member, batch))
            own = _outward(made.params, member)
            extra = _merged(extra, _given_back(made.extra, member, own), first_wins=True)
            params = own | params
        if clash := sorted(set(labels) & set(params)):
            raise UserError(f"A member of combine and a network are both called {clash[0]!r}; give it a `label`.")
        return Variables(params, extra)

    def draw(batch, key, step):
        drawn = {}
        for member in members:
            read = _read(member, batch)
            made = member.objective.draw(read, stream(key, member.label), step)
            drawn |= {f"{member.label}/{name}": made[name] for name in made.keys() - read.keys()}
        return {**batch, **drawn}

    def forward(params, extra, batch, key, step):
        outputs = {}
        for member in members:
            own = {name.removeprefix(f"{member.label}/"): value for name, value in batch.items()}
            outputs[member.label], moved = member.objective.forward(
                _inward(params, member),
                _lent(extra, member, params),
                _read(member, own),
                stream(key, member.label),
                step,
            )
            extra = _merged(extra, _given_back(moved, member, params))
        return outputs, extra

    def criterion(params, extra, outputs, step):
        total, measured = jnp.float32(0), {}
        for member in members:
            loss, (moved, own) = member.objective.criterion(
                _inward(params, member), _lent(extra, member, params), outputs[member.label], step
            )
            extra = _merged(extra, _given_back(moved, member, params))
            weight = jnp.where(step >= member.start_steps, as_schedule(member.weight)(step), 0.0)
            total += weight * loss
            measured |= {f"{member.label}/{name}": value for name, value in own.items()}
            measured[f"loss/{member.label}"] = weight * loss
        return total, (extra, {"loss": total, **measured})

    def after_update(params, extra, step):
        after = extra
        for member in reversed(members):  # all from the same teacher; the first member's word is the last
            lent = _lent(extra, member, params)
            moved = member.objective.after_update(_inward(params, member), lent, step)
            after = _merged(after, _given_back(moved, member, params))
        return after

    def after_load(params, extra):
        for member in members:
            settled = member.objective.after_load(_inward(params, member), _lent(extra, member, params))
            extra = _merged(extra, _given_back(settled, member, params))
        return extra

    def constrain(params):
        for member in members:
            params = {**params, **_outward(member.objective.constrain(_inward(params, member)), member)}
        return params

    def asked(member, function):
        def predict(variables: Variables, batch) -> Any:
            params, extra = variables
            return function(Variables(_inward(params, member), _lent(extra, member, params)), batch)

        return predict

    predict = {
        name: asked(member, function)
        for member in reversed(members)
        for name, function in member.objective.predict.items()
    }
    return Objective(
        init,
        forward,
        criterion,
        after_update,
        predict,
        separable=all(member.objective.separable for member in members),
        embedding=lambda outputs: members[0].objective.embedding(outputs[members[0].label]),
        after_load=after_load,
        constrain=constrain,
        draw=draw,
    )


def _read(member: Member, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch under the names that the member knows its fields by.

    Raises:
        UserError: the recipe makes no such views.
    """
    for source in member.fields.values():
        if source not in batch:
            raise UserError(
                f"The member {member.label!r} of combine reads {source!r}; the batch has {', '.join(batch)}. "
                f"Set config.views.{source}, or another name in the member's `fields`."
            )
    return {**batch, **{field: batch[source] for field, source in member.fields.items()}}


def _inward(tree: Mapping[str, Any], member: Member) -> dict[str, Any]:
    """A dict by network under the member's names for them."""
    elsewhere = set(member.networks.values()) | set(member.networks)
    renamed = {role: tree[name] for role, name in member.networks.items() if name in tree}
    return {name: value for name, value in tree.items() if name not in elsewhere} | renamed


def _outward(tree: Mapping[str, Any], member: Member) -> dict[str, Any]:
    """The same back under the recipe's names."""
    return {member.networks.get(name, name): value for name, value in tree.items()}


def _lent(extra: Mapping[str, Any], member: Member, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the member finds in `extra`: statistics of the shared networks, the teacher, and what is its own."""
    shared = _inward({name: value for name, value in extra.items() if name in params}, member)
    teacher = {kind: _inward(extra[kind], member) for kind in TEACHER if kind in extra}
    return shared | teacher | extra[member.label]


def _given_back(extra: Mapping[str, Any], member: Member, params: Mapping[str, Any]) -> dict[str, Any]:
    """What the member leaves, in the recipe's form."""
    made: dict[str, Any] = {member.label: {}}
    for name, value in extra.items():
        outer = member.networks.get(name, name)
        if name in TEACHER:
            made[name] = _outward(value, member)
        elif outer in params:
            made[outer] = value
        else:
            made[member.label][name] = value
    return made


def _merged(extra: Mapping[str, Any], new: Mapping[str, Any], first_wins: bool = False) -> dict[str, Any]:
    """`new` over `extra`, or under it; teachers network by network."""
    made = {**new, **extra} if first_wins else {**extra, **new}
    for kind in TEACHER:
        if kind in extra and kind in new:
            made[kind] = {**new[kind], **extra[kind]} if first_wins else {**extra[kind], **new[kind]}
    return made
