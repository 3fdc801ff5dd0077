"""What a run leaves behind: its config, measurements and summary; and a watch over every step's loss."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vfm_jax.core.chips import chip_of
from vfm_jax.core.distributed import check_shared, from_first
from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.flops import Flops
from vfm_jax.core.sharding import to_host
from vfm_jax.core.tables import build, lookup
from vfm_jax.core.trees import count_parameters
from vfm_jax.core.types import Batch, Measurements
from vfm_jax.experiment import Experiment, Ledger, bad_samples
from vfm_jax.report.environment import hardware, versions
from vfm_jax.report.progress import Progress
from vfm_jax.report.redaction import redact
from vfm_jax.report.writers import WRITERS, JsonLines, MetricsWriter
from vfm_jax.train.doctor import input_bound
from vfm_jax.train.profile import Profile
from vfm_jax.train.stages import Stage

Step = Callable[[Any, Any], tuple[Any, Any]]

_JUDGED_AFTER = 10.0  # seconds of steady training, from which a verdict on its pace is given
_OFFENDERS = 3  # examples and leaves named when something is not finite


def plain(value: Any) -> Any:
    """A recipe's value as JSON has it: mappings as dicts, tuples as lists."""
    if isinstance(value, Mapping) or hasattr(value, "to_dict"):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none, or a crash has left half of one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def finished_summary(workdir: pathlib.Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary in `workdir`, if this very recipe has run there to its end."""
    config, summary = _begun(workdir)
    same = config == redact(plain(recipe))
    return summary if same and summary.get("finished") else None


def _begun(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and summary of the run in `workdir`, as the first process finds them."""
    config, summary = from_first([read_json(workdir / name) for name in ("config.json", "summary.json")])
    return config, summary


def _words(network: Mapping[str, Any]) -> str:
    """A network's fields in one line: "vit, variant mu/7, width 96"."""
    shown = {k: v for k, v in network.items() if k in ("variant", "width", "depth", "heads") and v is not None}
    return ", ".join([network["name"], *(f"{field} {value}" for field, value in shown.items())])


class Run:
    """The files of a run; only the first process writes them (each its own ledger of bad records).

    Attributes:
        ledger: of records that cannot be used.
        summary: what becomes `summary.json` (its fields are listed in `report.inputs`).
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        recipe: Mapping[str, Any],
        stages: Sequence[Stage],
        experiments: Sequence[Experiment],
        profile: tuple[int, int] | None = None,
    ):
        """Takes the run's recipe, its stages and what they are made of, and the first and last step to trace."""
        total = sum(experiment.total_steps for experiment in experiments)
        if profile is not None and profile[1] > total:
            raise UserError(f"--profile={profile[0]}:{profile[1]} goes beyond the run, which has {total:,} steps.")
        self.workdir = workdir
        self.checkpoints = workdir / "checkpoints"
        self.is_first = jax.process_index() == 0
        self._started = time.time()
        self._recipe = redact(plain(recipe))  # credentials reach no file, tracker or checkpoint
        before, self.summary = _begun(workdir)
        self._wall_before = self.summary.get("wall_seconds", 0.0)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._metrics = JsonLines(workdir / "metrics.jsonl") if self.is_first else None
        except OSError as error:
            raise UserError(
                f"The workdir {workdir} cannot be written: {error.strerror}. Give another --workdir."
            ) from None
        check_shared(workdir)
        process = f".{jax.process_index()}" if jax.process_index() else ""
        self.ledger = Ledger(workdir / f"bad_samples{process}.jsonl", say=self.say)
        self._begun = False
        if before and before != self._recipe:
            self.say("The recipe differs from the one this workdir was begun with; going on with the new one.")
            self.summary.pop("evaluations", None)
        self._profile = Profile(*profile, workdir / "profile", self.say) if profile and self.is_first else None
        self._others: list[MetricsWriter] = []
        for name in experiments[0].writers:
            lookup(WRITERS, name, "config.writers")
            if self.is_first:
                self._others.append(
                    build(WRITERS, {"name": name}, "config.writers", workdir=workdir, config=self._recipe)
                )
        self._describe(stages, experiments)

    def _describe(self, stages: Sequence[Stage], experiments: Sequence[Experiment]) -> None:
        first = experiments[0]
        test = first.eval_sources.get("test")
        done = {row["name"]: row for row in self.summary.get("stages", ())}
        self.summary |= {
            "title": first.title,
            "objective": self._recipe["objective"]["name"],
            "network": _words(self._recipe["networks"]["encoder"]),
            "num_parameters": count_parameters(first.abstract_params),
            "data": {
                "name": self._recipe["data"]["name"],
                "num_examples": len(first.source),
                "num_test": len(test) if test is not None else None,
                "image_shape": list(first.source.image_shape),
                "num_classes": len(first.source.class_names) if first.source.class_names else None,
            },
            "seed": first.seed,
            "batch_size": first.batch_size,
            "stages": [
                {"steps": 0} | done.get(stage.name, {}) | {"name": stage.name, "total_steps": experiment.total_steps}
                for stage, experiment in zip(stages, experiments, strict=True)
            ],
            "total_steps": sum(experiment.total_steps for experiment in experiments),
            "versions": versions(),
            "hardware": hardware(),
            "finished": False,
        }

    def say(self, message: str) -> None:
        """Prints a line, from the first process alone."""
        if self.is_first:
            print(message, flush=True)

    def begin(self) -> None:
        """Puts the recipe on record, once its state is there: one that does not fit the workdir leaves no trace."""
        if not self._begun:
            self._begun = True
            self._write_json("config.json", self._recipe)

    def meta(self, stage: str, experiment: Experiment, step: int) -> dict[str, Any]:
        """What a checkpoint holds beside the state. The position in the data is the number of examples seen."""
        seen = step * experiment.batch_size
        return {"stage": stage, "step": step, "examples_seen": seen, "recipe": self._recipe, "versions": versions()}

    def write(self, stage: int, step: int, kind: Any, metrics: Mapping[str, Any]) -> None:
        """Records measurements with every writer."""
        if self._metrics:
            for writer in (self._metrics, *self._others):
                writer.write(stage, step, kind, metrics)

    @contextlib.contextmanager
    def watch(
        self,
        stage: str,
        experiment: Experiment,
        start: int,
        leaf_names: Sequence[str],
        reading: Callable[[], Mapping[str, float]],
        flops: Callable[[], Flops],
    ) -> Iterator["Watch"]:
        """Follows the steps of a stage from `start` on; what was measured after it, before a crash, is dropped.

        Args:
            stage: its name.
            experiment: what it trains.
            start: steps done before.
            leaf_names: of the parameters, in order.
            reading: gives the seconds spent on reading data so far, by part.
            flops: counts the model's operations in a step; asked once, when the pace is first known.
        """
        if self._metrics and start < experiment.total_steps:  # after a stage that is done come the rows of the next
            self._metrics.truncate_after(experiment.stage, start)
        with Progress(stage, experiment.total_steps) if self.is_first else contextlib.nullcontext() as progress:
            watch = Watch(self, experiment, start, leaf_names, progress, reading, flops)
            try:
                yield watch
                watch.flush()
            finally:
                self.summary["stages"][experiment.stage] |= {"steps": watch.steps_done} | watch.input_figures()
                self.summary["steps"] = sum(row["steps"] for row in self.summary["stages"])
                if watch.images_per_second is not None:
                    self.summary["images_per_second"] = watch.images_per_second

    def profiled(self, step: Step, experiment: Experiment, start: int) -> Step:
        """The step function of a stage, of which `start` steps are done, that traces what is to be traced."""
        if self._profile is None:
            return step
        stages = self.summary["stages"][: experiment.stage]
        done = start + sum(row["total_steps"] for row in stages)
        if done >= self._profile.last:
            self.say(f"No trace: the run stands at step {done:,}, behind --profile={self._profile}.")
        return self._profile.over(step, done)

    def is_concluded(self, stage: str) -> bool:
        """Whether the stage's last evaluation is known, from before a restart."""
        return self._label(stage) in self.summary.get("evaluations", {})

    def measured_before(self, subject: str, figures: Mapping[str, float]) -> None:
        """Takes in what the run starts from, to be compared with at its end."""
        self.summary.setdefault("evaluations", {})[subject] = dict(figures)
        self._write_json("summary.json", self.summary)

    def conclude(
        self, stage: str, figures: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Takes in a stage's last evaluation."""
        self.summary.setdefault("evaluations", {}).update({self._label(stage): dict(figures)} | dict(baselines))
        self._write_json("summary.json", self.summary)

    def _label(self, stage: str) -> str:
        return stage if len(self.summary["stages"]) > 1 else "pretrained"

    def close(self, stopped_by: str) -> None:
        """Writes the summary and closes the files."""
        if self._profile:
            self._profile.close()
        rows = self.summary["stages"]
        self.summary["finished"] = all(row["steps"] >= row["total_steps"] for row in rows)
        self.summary["stopped_by"] = "" if self.summary["finished"] else stopped_by
        self.summary["bad_samples"] = found = bad_samples(self.workdir)
        if found:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in found["reasons"].items())
            self.say(f"Records that could not be used, listed in {self.ledger.path}: {counts}.")
        self.summary["wall_seconds"] = round(self._wall_before + time.time() - self._started, 1)
        if self._begun:
            self._write_json("summary.json", self.summary)
        for writer in (self._metrics, *self._others) if self._metrics else ():
            writer.close()

    def _write_json(self, name: str, value: Any) -> None:
        if self.is_first:
            partial = self.workdir / f"{name}.partial"
            partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, self.workdir / name)  # all or nothing, should the process be stopped here


class Watch:
    """Reads each step's measurements while the next one runs, and stops the run where they are not finite.

    Attributes:
        steps_done: steps whose measurements were read, those before a resume included.
        images_per_second: over all devices, since the last line that was written; None before the first.
    """

    def __init__(
        self,
        run: Run,
        experiment: Experiment,
        start: int,
        leaf_names: Sequence[str],
        progress: Progress | None,
        reading: Callable[[], Mapping[str, float]],
        flops: Callable[[], Flops],
    ):
        self.steps_done = start
        self.images_per_second: float | None = None
        self._run, self._experiment, self._progress = run, experiment, progress
        self._leaf_names = leaf_names
        self._pending: tuple[Measurements, Batch, float] | None = None
        self._since: tuple[int, float, float] | None = None  # step, time, seconds waited by then
        self._waiting_ratio = 0.0
        self._reading, self._count_flops = reading, flops
        self._flops: int | None = None  # of a step, once counted
        self._steady = self._waited = 0.0  # seconds of training without compilation and pauses; waiting among them
        self._last: tuple[float, float] | None = None  # time, and seconds waited by then
        self._has_warned = False

    def stepped(self, measured: Measurements, batch: Batch, waited: float) -> None:
        """A step is under way: reads the one before it.

        Args:
            measured: of the step just dispatched.
            batch: it was taken on.
            waited: seconds spent waiting for data so far, in all.
        """
        previous, self._pending = self._pending, (measured, batch, waited)
        if previous is not None:
            self._read(*previous)

    def flush(self) -> None:
        """Reads the last step too."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._read(*pending)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Reads the last step, and does not count the time inside as training."""
        self.flush()
        yield
        self._since = self._last = None

    def input_figures(self) -> dict[str, Any]:
        """For the summary: share of the time spent waiting for data, what reading it was, and the verdict on it.

        Empty where no time was measured; no verdict on a few seconds.
        """
        if not self._steady:
            return {}
        reading = self._reading()
        total = sum(reading.values())
        return {
            "input_bound_ratio": round(self._waited / self._steady, 4),
            "reading_shares": {part: round(spent / total, 4) for part, spent in reading.items()} if total else {},
            "verdict": self._verdict() or "",
        }

    def _read(self, measured: Measurements, batch: Batch, waited: float) -> None:
        measured = dict(measured)
        leaf_norms = measured.pop("leaf_gradient_norms")
        values = {name: float(value) for name, value in measured.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise TrainingError(self._not_finite(values, batch, np.asarray(leaf_norms)))
        self.steps_done += 1
        now, step = time.perf_counter(), self.steps_done
        if self._since is None:
            self._since = (step, now, waited)
        if self._last is not None:
            self._steady += now - self._last[0]
            self._waited += waited - self._last[1]
        self._last = (now, waited)
        first, began, waited_before = self._since
        if step > first:
            self.images_per_second = (step - first) * self._experiment.batch_size / (now - began)
            self._waiting_ratio = (waited - waited_before) / (now - began)
        if step % self._experiment.log_every_steps == 0:
            speed = {"images_per_second": self.images_per_second, "waiting_ratio": self._waiting_ratio}
            known = speed | self._arithmetic() if self.images_per_second is not None else {}
            self._run.write(self._experiment.stage, step, "train", values | known)
            self._since = (step, now, waited)
            self._warn()
        if self._progress:
            self._progress.update(step, values["loss"], self.images_per_second, self._waiting_ratio)

    def _arithmetic(self) -> dict[str, float]:
        """The model's operations in a step and in a second, in units of 1e12, and their share of the devices' peak.

        The share, MFU (Chowdhery et al., PaLM, 2022, arXiv:2204.02311, App. B), is that of bfloat16. Nothing of
        devices that `core.chips` does not know, such as CPUs: counting takes a trace of the model.
        """
        devices = self._experiment.mesh.devices
        chip = chip_of(devices.flat[0].device_kind)
        if chip is None or not self._run.is_first or self.images_per_second is None:
            return {}
        if self._flops is None:
            self._flops = self._count_flops().total
        rate = self._flops * self.images_per_second / self._experiment.batch_size
        return {
            "model_tflops_per_step": self._flops / 1e12,
            "model_tflops_per_second": rate / 1e12,
            "mfu": rate / (devices.size * chip.matmul / chip.devices),
        }

    def _verdict(self) -> str | None:
        if self._steady < _JUDGED_AFTER:
            return None
        return input_bound(self._waited / self._steady, self._reading())

    def _warn(self) -> None:
        """Says once that the devices wait for data, as soon as that is known."""
        if not self._has_warned and (verdict := self._verdict()):
            self._has_warned = True
            self._run.say(f"The doctor: {verdict}")

    def _not_finite(self, values: Mapping[str, float], batch: Batch, leaf_norms: np.ndarray) -> str:
        index = to_host(batch["index"])
        named = ", ".join(f"{i} ({self._experiment.source.name(int(i))})" for i in index[:_OFFENDERS])
        rank = np.argsort(-np.where(np.isfinite(leaf_norms), leaf_norms, np.inf), kind="stable")[:_OFFENDERS]
        largest = ", ".join(f"{self._leaf_names[i]} {leaf_norms[i]:.3g}" for i in rank)
        step = self.steps_done + 1
        return (
            f"Stopped at step {step}: loss {values['loss']:.4g}, gradient norm {values['gradient_norm']:.4g}, at "
            f"learning rate {values['learning_rate']:.3g}.\n"
            f"Examples of that batch: {named} and {len(index) - _OFFENDERS} more; all in {self._note(step, index)}.\n"
            f"Largest gradients: {largest}.\n"
            "The last checkpoint is untouched. Try a lower config.schedule.base, config.optimizer.clip_norm=1.0 or "
            "dtype float32."
        )

    def _note(self, step: int, index: np.ndarray) -> str:
        path = self._run.workdir / f"not_finite_{self._experiment.stage}_{step}.json"
        if self._run.is_first:
            path.write_text(json.dumps({"step": step, "index": index.tolist()}) + "\n", encoding="utf-8")
        return path.name
