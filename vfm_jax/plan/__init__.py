"""The plan of a run: what it takes on devices that need not be there, told by their compiler if it is installed."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.experiment import Source, blank_source, read_source
from vfm_jax.plan.fit import Change, changes_that_fit, largest_batch
from vfm_jax.plan.stage import StagePlan, StepTime, plan_stage
from vfm_jax.plan.target import Target, find_target
from vfm_jax.train.stages import read_stages

__all__ = ["Change", "PlannedStage", "StagePlan", "StepTime", "Target", "find_target", "plan"]


class PlannedStage(NamedTuple):
    """A stage's plan, and what else can be asked of it; asking takes a compilation or more.

    Attributes:
        plan: of the stage as the recipe has it.
        data: where its number of examples is from, where the data are not here; "" where they are.
        changes: gives what was tried to make it fit, until something does; nothing where it fits.
        largest: gives the plan of the largest batch found to fit; None where none does, or memory is not known.
    """

    plan: StagePlan
    data: str
    changes: Callable[[], Iterator[Change]]
    largest: Callable[[], StagePlan | None]


def plan(recipe: Mapping[str, Any], target: Target, num_examples: int | None = None) -> Iterator[PlannedStage]:
    """Plans every stage of a recipe for the target's devices; reads no images, allocates and runs nothing.

    Args:
        recipe: as for `train`.
        target: see `find_target`.
        num_examples: of the data, where they are not here and not well known.

    Raises:
        UserError: the recipe cannot be built for these devices.
    """
    for number, stage in enumerate(read_stages(recipe)):
        source, note = _source(stage.recipe, num_examples)

        def attempt(changed: Any, number: int = number, source: Source = source) -> StagePlan:
            return plan_stage(changed, number, target, source)

        found = attempt(stage)
        yield PlannedStage(
            found,
            note,
            lambda stage=stage, found=found, attempt=attempt: (
                iter(()) if found.fits is not False else changes_that_fit(stage, found, attempt)
            ),
            lambda stage=stage, found=found, attempt=attempt, source=source: (
                None if found.memory_bytes is None else largest_batch(stage, found, attempt, len(source))
            ),
        )


def _source(recipe: dict[str, Any], num_examples: int | None) -> tuple[Source, str]:
    """The data themselves if they are here; else what stands in for them, and a line about it."""
    try:
        if num_examples is None:
            return read_source(recipe), ""
        reason = "as many examples as asked for"
    except (UserError, ModuleNotFoundError) as error:
        reason = f"the data are not here ({str(error).splitlines()[0]})"
    blank = blank_source(recipe, num_examples)
    return blank, f"{reason}; planned with {len(blank):,} examples"
