"""What would make a stage fit, and how large its batch could be: each answer is compiled, none is guessed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import keywords
from vfm_jax.experiment import MODELS, OPTIMIZERS
from vfm_jax.plan.stage import StagePlan
from vfm_jax.train.stages import Stage

Recipe = dict[str, Any]
Try = Callable[[Stage], StagePlan]

MICRO_BATCHES = (2, 4, 8)
ATTEMPTS = 3  # compilations that the search for a batch may take


class Change(NamedTuple):
    """Settings that were tried, as they are written on the command line, and what came of them."""

    settings: tuple[str, ...]
    plan: StagePlan


def changes_that_fit(stage: Stage, plan: StagePlan, attempt: Try) -> Iterator[Change]:
    """Tries, one after another, what takes less memory, the cheapest in time first; ends at the first that fits.

    Every attempt is told, those that do not fit too. Each keeps what was changed before it: moments in bfloat16,
    state split over all devices (FSDP), activations computed again, and parts of the batch one after another.
    """
    recipe, settings = stage.recipe, ()
    for change in (_bfloat16_moments, _split_state, _remat("dots"), _remat("full"), *map(_micro, MICRO_BATCHES)):
        changed = change(recipe, plan)
        if changed is None:
            continue
        replaced = {setting.split("=")[0] for setting in changed[1]}
        written = (*(s for s in settings if s.split("=")[0] not in replaced), *changed[1])
        try:
            found = Change(written, attempt(stage._replace(recipe=changed[0])))
        except UserError:  # a batch or a width that does not divide so
            continue
        recipe, settings = changed[0], written
        yield found
        if found.plan.fits:
            return


def largest_batch(stage: Stage, plan: StagePlan, attempt: Try, num_examples: int) -> StagePlan | None:
    """The plan of the largest batch that was found to fit; None where not even the smallest does.

    It is no larger than the data set. What a batch takes grows in proportion to it, beside the state: the line
    through what is known gives the next size, which is then compiled, `ATTEMPTS` times at most. It is a multiple of
    the recipe's own, or of that halved until it is an eighth of the size: what divides the one (groups,
    micro-batches) most often divides the other. A larger one than the answer may fit, by an eighth.
    """
    assert plan.memory_bytes is not None
    ways = plan.mesh["data"] * plan.mesh["fsdp"] * stage.recipe.get("num_micro_batches", 1)
    best = plan if plan.fits else None
    tried, found = {plan.batch_size}, plan
    for _ in range(ATTEMPTS):
        per_example = max(found.peak_bytes - plan.state_bytes, 1.0) / found.batch_size
        room = 0.98 * plan.memory_bytes - plan.state_bytes
        size = _divided_alike(min(int(max(room, 0) / per_example), num_examples), plan.batch_size, ways)
        if size in tried or (best is not None and size < 1.05 * best.batch_size):
            break
        tried.add(size)
        # As many steps as before: a warm-up that is longer than a shorter run is another matter.
        length = {"total_steps": plan.total_steps, "total_epochs": None, "total_examples": None}
        data = {**stage.recipe["data"], "batch_size": size}
        try:
            found = attempt(stage._replace(recipe={**stage.recipe, **length, "data": data}))
        except UserError:  # a size that does not divide as the method wants
            break
        if found.fits and (best is None or size > best.batch_size):
            best = found
    return best


def _divided_alike(size: int, own: int, ways: int) -> int:
    """The size rounded down; at least what `ways` devices need."""
    step = own
    while step > size / 8 and step % 2 == 0 and step // 2 % ways == 0:
        step //= 2
    return max(size // step * step, ways)


def _bfloat16_moments(recipe: Recipe, plan: StagePlan) -> tuple[Recipe, tuple[str, ...]] | None:
    del plan
    optimizer = recipe["optimizer"]
    known = keywords(OPTIMIZERS[optimizer["name"]])
    if "momentum_dtype" not in known:
        return None
    if optimizer.get("momentum_dtype", known["momentum_dtype"].default) == "bfloat16":
        return None
    changed = {**recipe, "optimizer": {**optimizer, "momentum_dtype": "bfloat16"}}
    return changed, ("--config.optimizer.momentum_dtype=bfloat16",)


def _split_state(recipe: Recipe, plan: StagePlan) -> tuple[Recipe, tuple[str, ...]] | None:
    ways = plan.mesh["data"] * plan.mesh["fsdp"]
    if plan.mesh["data"] == 1:
        return None
    mesh = {**recipe.get("mesh", {}), "data": 1, "fsdp": ways}
    return {**recipe, "mesh": mesh}, ("--config.mesh.data=1", f"--config.mesh.fsdp={ways}")


def _remat(policy: str) -> Callable[[Recipe, StagePlan], tuple[Recipe, tuple[str, ...]] | None]:
    def change(recipe: Recipe, plan: StagePlan) -> tuple[Recipe, tuple[str, ...]] | None:
        del plan
        networks, written = _with_remat(recipe["networks"], policy, "--config.networks")
        return ({**recipe, "networks": networks}, tuple(written)) if written else None

    return change


def _with_remat(networks: Mapping[str, Any], policy: str, where: str) -> tuple[dict[str, Any], list[str]]:
    changed, written = {}, []
    for role, spec in networks.items():
        changed[role] = spec
        if not isinstance(spec, Mapping):
            continue
        if "name" not in spec:  # a role that is several networks
            changed[role], inner = _with_remat(spec, policy, f"{where}.{role}")
            written += inner
            continue
        known = keywords(MODELS[spec["name"]]) if spec["name"] in MODELS else {}
        if "remat" in known and spec.get("remat", known["remat"].default) not in (policy, "full"):
            changed[role] = {**spec, "remat": policy}
            written.append(f"{where}.{role}.remat={policy}")
            if "scan" in known and not spec.get("scan", False):
                changed[role]["scan"] = True  # without it a GPU's compiler undoes most of what `remat` asks for
                written.append(f"{where}.{role}.scan=True")
    return changed, written


def _micro(times: int) -> Callable[[Recipe, StagePlan], tuple[Recipe, tuple[str, ...]] | None]:
    def change(recipe: Recipe, plan: StagePlan) -> tuple[Recipe, tuple[str, ...]] | None:
        del plan
        if recipe.get("num_micro_batches", 1) >= times:
            return None
        return {**recipe, "num_micro_batches": times}, (f"--config.num_micro_batches={times}",)

    return change
