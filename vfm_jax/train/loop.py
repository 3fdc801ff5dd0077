"""The loop: build every stage, then for each one make or restore its state and take its steps.

Duties of one turn, in this order: evaluate if due, save if due, take a batch, step, report the step before. So an
evaluation and a checkpoint of one number see the same state; the next step is under way before the last one's
measurements are read; and the data moves on only after the save.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vfm_jax.core.distributed import is_first
from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import key_for
from vfm_jax.core.sharding import on_devices, replicated, sharded_init, shardings, to_host, traced_over
from vfm_jax.core.trees import named_leaves
from vfm_jax.experiment import Experiment, Ledger, Variables, from_recipe, with_pretrained
from vfm_jax.report.inputs import write_arrays
from vfm_jax.train.checkpoint import MANIFEST, Checkpoints, restore_params
from vfm_jax.train.evaluation import Judge
from vfm_jax.train.record import Run, finished_summary, read_json
from vfm_jax.train.stages import Donor, Stage, carry_over, read_stages
from vfm_jax.train.state import TrainState, init_state
from vfm_jax.train.step import make_step, step_flops
from vfm_jax.train.stop import Stop, counting


def train(
    recipe: Mapping[str, Any], workdir: str | os.PathLike[str], *, profile: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Runs a recipe in `workdir`, or continues there where it stopped, and gives its summary.

    Leaves `config.json`, `metrics.jsonl`, `summary.json`, `checkpoints/` and the arrays of the report;
    `bad_samples.jsonl` where there are records that cannot be used; and `profile/`, a trace of the steps from
    `profile[0]` to `profile[1]`, counted from 1 over all stages.

    Raises:
        UserError: the recipe or the data cannot be used, or the workdir holds another model.
        TrainingError: the loss is not finite, too many records are bad, or the data cannot be read.
    """
    workdir = pathlib.Path(workdir).absolute()
    recipe = with_pretrained(recipe)  # on record, so that going on does not need the file of weights
    if (finished := finished_summary(workdir, recipe)) is not None:
        if is_first():
            print(f"{workdir} holds this run, finished. Give another --workdir to start over.", flush=True)
        return finished
    stages = read_stages(recipe)
    # All of them first: every mistake shows before any work.
    experiments = [from_recipe(stage.recipe, i) for i, stage in enumerate(stages)]
    run = Run(workdir, recipe, stages, experiments, profile)
    experiments[0].keep_vocabulary(workdir)
    with Stop() as stop:
        try:
            trunk, donor = _trunk(recipe), _start(recipe)
            for stage, experiment in zip(stages, experiments, strict=True):
                state = run_stage(run, stage, experiment, donor, stop, trunk)
                if stop.requested:
                    break
                trunk = None
                donor = Donor(
                    Variables(*to_host((state.params, state.extra))),
                    Variables(*to_host(state.variables.result)),
                    stage.recipe["objective"]["name"],
                    f"stage {stage.name}",
                )
        finally:
            run.close(stop.reason)
    return run.summary


def evaluate(recipe: Mapping[str, Any], workdir: str | os.PathLike[str] | None) -> tuple[int, dict[str, float]]:
    """Step and figures of the newest checkpoint in `workdir`, with the evaluators of the recipe.

    Without a workdir, those of the public weights that the recipe starts from (`config.init`), at step 0.

    Raises:
        UserError: no checkpoint and no such weights, or the recipe has no evaluators.
    """
    if workdir is None:
        return 0, _evaluate_public_weights(from_recipe(read_stages(recipe)[0].recipe))
    for stage in reversed(read_stages(recipe)):
        directory = pathlib.Path(workdir).absolute() / "checkpoints" / stage.name
        if directory.is_dir():
            experiment = from_recipe(stage.recipe)
            if not experiment.evaluations:
                raise UserError("The recipe has no config.evals: nothing to evaluate.")
            experiment.keep_vocabulary(pathlib.Path(workdir).absolute())
            _, _, abstract = blank_state(experiment)
            with Checkpoints(directory) as checkpoints:
                found = checkpoints.restore(abstract)
            if found is not None:
                state, meta = found
                return meta["step"], _judge_alone(experiment).evaluate(state.variables, experiment.evaluations)
    raise UserError(
        f"{workdir} has no checkpoint of this recipe. Train first: vfm train --config=... --workdir={workdir}"
    )


def _evaluate_public_weights(experiment: Experiment) -> dict[str, float]:
    if experiment.initialize is None:
        raise UserError("There is nothing to evaluate: give --workdir of a run, or --config.init.weights.")
    if not experiment.evaluations:
        raise UserError("The recipe has no config.evals: nothing to evaluate.")
    blank, key, _ = blank_state(experiment)
    state, account = _with_public_weights(experiment, _born(experiment, blank, key))
    print(account, flush=True)
    return _judge_alone(experiment).evaluate(state.variables, experiment.evaluations)


def _judge_alone(experiment: Experiment) -> Judge:
    """Outside of a run: bad records are told of, and not written down."""
    return Judge(experiment, Ledger(say=lambda line: print(line, flush=True)))


def _start(recipe: Mapping[str, Any]) -> Donor | None:
    """What the first stage starts from; None where it starts from scratch."""
    origin = recipe.get("start_from")
    if not origin:
        return None
    if recipe.get("init", {}).get("weights"):
        raise UserError("The recipe sets both config.start_from and config.init.weights; keep one of them.")
    found = restore_params(_last_stage(pathlib.Path(origin)))
    stage = next(s for s in read_stages(found.meta["recipe"]) if s.name == found.meta["stage"])
    return Donor(Variables(found.params, found.extra), found.result, stage.recipe["objective"]["name"], str(origin))


def _last_stage(path: pathlib.Path) -> pathlib.Path:
    """The checkpoints of the last stage where `path` is a run; else `path`."""
    if (before := read_json(path / "config.json")) and (path / "checkpoints").is_dir():
        names = [stage.name for stage in read_stages(before)]
        return next((p for name in reversed(names) if (p := path / "checkpoints" / name).is_dir()), path)
    return path


def _trunk(recipe: Mapping[str, Any]) -> pathlib.Path | None:
    """What the first stage branches off; None where it is no branch."""
    if not recipe.get("branch_from"):
        return None
    if recipe.get("start_from"):
        raise UserError("The recipe sets both config.start_from and config.branch_from, which brings everything.")
    return _last_stage(pathlib.Path(recipe["branch_from"]))


def _branched(trunk: pathlib.Path, abstract: TrainState, experiment: Experiment, say: Callable[[str], None]) -> Any:
    """State and meta of a run's checkpoint, for another run that goes on from there with everything.

    Parameters, averages, moments, the number of steps and the position in the data are the trunk's, so that a branch
    differs from it by its recipe alone: a trunk at a constant rate, and branches that let it fall (Hägele et al.,
    2024, arXiv:2405.18392).
    """
    one = (trunk / MANIFEST).is_file()
    with Checkpoints(trunk.parent if one else trunk, log=say) as checkpoints:
        found = checkpoints.restore(abstract, int(trunk.name) if one else None)
    if found is None:
        raise UserError(
            f"config.branch_from: no checkpoint in {trunk}. Give a run, or checkpoints/STAGE/STEP of one."
        )
    step = found[1]["step"]
    if step >= experiment.total_steps:
        raise UserError(
            f"{trunk} stands at step {step:,}, and the branch ends at step {experiment.total_steps:,}. Its length"
            " counts from the trunk's start: lengthen it, or branch off an earlier step, checkpoints/STAGE/STEP."
        )
    say(f"Branching off {trunk} at step {step:,}.")
    return found


def run_stage(
    run: Run,
    stage: Stage,
    experiment: Experiment,
    donor: Donor | None,
    stop: Stop,
    trunk: pathlib.Path | None = None,
) -> TrainState:
    """Takes one stage to its end, or to where it was asked to stop."""
    blank, key, abstract = blank_state(experiment)
    judge = Judge(experiment, run.ledger) if experiment.evaluations else None

    with Checkpoints(run.checkpoints / stage.name, keep_last=experiment.keep_checkpoints, log=run.say) as checkpoints:
        found = checkpoints.restore(abstract)
        if found is not None:
            run.say(f"Resuming stage {stage.name} at step {found[1]['step']:,}.")
        elif trunk is not None:
            found = _branched(trunk, abstract, experiment, run.say)
        public = found is None and donor is None and experiment.initialize is not None
        if found is not None:
            state, start = found[0], found[1]["step"]
            if (seen := found[1]["examples_seen"]) != start * experiment.batch_size:
                raise UserError(
                    f"Stage {stage.name} stands at {seen:,} examples, {seen // start:,} a step; "
                    f"config.data.batch_size is now {experiment.batch_size:,}: its data could not go on in order.\n"
                    "Keep the batch size, or start from these weights in another --workdir with config.start_from."
                )
        else:
            start = 0
            state = _born(experiment, blank, key)
            if donor is not None:
                variables, account = carry_over(
                    Variables(state.params, state.extra),
                    donor,
                    stage.carry,
                    stage.recipe["objective"]["name"],
                    experiment.objective.after_load,
                )
                state = _started_from(state, *variables)
                run.say(account)
            elif public:
                state, account = _with_public_weights(experiment, state)
                run.say(account)
            if experiment.fill_frozen is not None:  # last: a file that the stage names wins over what came along
                extra, account = experiment.fill_frozen(state.extra)
                state = state.replace(extra=extra)
                run.say(account)
        step_function = stop.listening(jitted_step(experiment, abstract), experiment.mesh)
        step_function = run.profiled(step_function, experiment, start)
        run.begin()
        if public and judge:  # what the run is to improve on
            figures = judge.evaluate(state.variables, experiment.evaluations)
            run.write(experiment.stage, 0, "eval", figures)
            run.measured_before("public_weights", figures)
        names = list(named_leaves(state.params))
        flops = functools.partial(
            step_flops, experiment.objective, experiment.views, abstract, experiment.abstract_batch()
        )
        with (
            experiment.train_batches(start, run.ledger) as batches,
            run.watch(stage.name, experiment, start, names, lambda: batches.seconds, flops) as watch,
        ):
            step = start
            while True:
                if judge and (due := _due(experiment, step, start)):
                    with watch.pause():
                        figures = judge.evaluate(state.variables, due)
                    run.write(experiment.stage, step, "eval", figures)
                last = step >= experiment.total_steps or stop.requested
                if step > start and (last or step % experiment.save_every_steps == 0):
                    with watch.pause():  # has read the last loss: a state that is not finite is never saved
                        checkpoints.save(step, state, run.meta(stage.name, experiment, step))
                if last:
                    break
                batch = next(batches)
                state, measured = step_function(state, batch)
                watch.stepped(measured, batch, batches.wait_seconds)
                step += 1
        checkpoints.wait()
        if judge and step >= experiment.total_steps and not run.is_concluded(stage.name):
            fresh = functools.partial(_born, experiment, blank, key)
            _conclude(run, stage.name, experiment, judge, state, fresh)
    return state


def blank_state(experiment: Experiment) -> tuple[Callable[[jax.Array], TrainState], jax.Array, TrainState]:
    """The pure function that makes a fresh state, its key, and the shape, dtype and sharding of every leaf."""
    averages: dict[str, Any] = {"with_ema": experiment.update_ema is not None}
    if experiment.tracker:
        averages["start_profiles"] = experiment.tracker.start

    def blank(key: jax.Array) -> TrainState:
        sample = {name: jnp.asarray(value) for name, value in experiment.sample.items()}
        batch = experiment.views(key, sample)
        return init_state(experiment.objective, experiment.optimizer, batch, key, **averages)

    key = key_for(experiment.seed, 0, "init", experiment.stage)
    shapes = jax.eval_shape(blank, key)
    layout = shardings(shapes, experiment.mesh, experiment.rules, experiment.offload)
    abstract = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, layout)
    return blank, key, abstract


def _born(experiment: Experiment, blank: Callable[[jax.Array], TrainState], key: jax.Array) -> TrainState:
    return sharded_init(blank, experiment.rules, experiment.mesh, key, on_host=experiment.offload)


def jitted_step(experiment: Experiment, abstract: TrainState) -> Any:
    """The step of a stage under `jax.jit`: state (given away) and batch to state and measurements.

    Args:
        experiment: the stage.
        abstract: shape, dtype and sharding of every leaf of its state, which the step keeps.
    """
    mesh, layout = experiment.mesh, jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = make_step(
        experiment.objective,
        experiment.optimizer,
        experiment.views,
        seed=experiment.seed,
        stage=experiment.stage,
        num_micro_batches=experiment.num_micro_batches,
        log_every_steps=experiment.log_every_steps,
        update_ema=experiment.update_ema,
        update_profiles=experiment.tracker.update if experiment.tracker else None,
        **({"fetch": on_devices} if experiment.offload else {}),
        schedule=experiment.schedule,
    )
    counted = counting(traced_over(mesh, step))
    return jax.jit(counted, donate_argnums=0, out_shardings=(layout, replicated(mesh)))


def _with_public_weights(experiment: Experiment, state: TrainState) -> tuple[TrainState, str]:
    """A fresh state with the weights that the recipe starts from, and the account of every leaf."""
    assert experiment.initialize is not None
    params, extra, account = experiment.initialize(state.params, state.extra)
    return _started_from(state, params, experiment.objective.after_load(params, extra)), account


def _started_from(state: TrainState, params: Any, extra: Any) -> TrainState:
    """A fresh state with other parameters, and the average that starts there."""
    ema = jax.tree.map(lambda one, old: jax.device_put(jnp.copy(one), old.sharding), params, state.ema or params)
    return state.replace(params=params, extra=extra, ema=ema if state.ema else {})


def _due(experiment: Experiment, step: int, start: int) -> list[str]:
    if step == start or step >= experiment.total_steps:  # the last evaluation is the stage's conclusion
        return []
    return [name for name, e in experiment.evaluations.items() if e.every_steps and step % e.every_steps == 0]


def _conclude(
    run: Run, stage: str, experiment: Experiment, judge: Judge, state: TrainState, fresh: Callable[[], TrainState]
) -> None:
    """The last evaluation, the baselines it is compared with, and the pictures."""
    figures = judge.evaluate(state.variables, experiment.evaluations)
    baselines = judge.baselines(lambda: fresh().variables)
    run.write(experiment.stage, experiment.total_steps, "eval", figures)
    pictures = judge.pictures(state.variables)  # every process takes part
    if run.is_first:
        write_arrays(run.workdir, pictures)
    run.conclude(stage, figures, baselines)
