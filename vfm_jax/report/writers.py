"""Where measurements go: a file of JSON lines always, TensorBoard and Weights & Biases on request.

One line of `metrics.jsonl` is `{"stage": 0, "step": 20, "kind": "train", "time": 1712345678.9, "loss": 0.41, ...}`:
`stage` counts from 0, `step` counts within the stage, `kind` is "train" or "eval", `time` is seconds since 1970.
JSON has no non-finite numbers: they are written as the strings "NaN", "Infinity", "-Infinity", which `float` reads.
"""

import importlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

from vfm_jax.report.redaction import redact

Kind = Literal["train", "eval"]
FIELDS = ("stage", "step", "kind", "time")
_LONGEST_LINE = 1 << 20  # bytes; a line of a thousand metrics has a twentieth of that


class MetricsWriter(Protocol):
    """Takes scalars as they are measured. Only one process of a run holds one."""

    def write(self, stage: int, step: int, kind: Kind, metrics: Mapping[str, Any]) -> None:
        """Records scalars (Python, numpy or jax) measured at `step` of `stage`."""
        ...

    def close(self) -> None:
        """Sends what is still buffered."""
        ...


def _plain(value: Any) -> int | float:
    return value if isinstance(value, int) else float(value)


def _encodable(value: int | float) -> int | float | str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


class JsonLines:
    """Appends to a file of JSON lines that survives `kill -9` at any moment.

    Each line is handed to the system whole, as soon as it is measured. A last line without its end, left by a process
    that was stopped while writing, is cut off on opening.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def _open(self) -> None:
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        size = self._file.tell()
        with open(self.path, "rb") as f:
            f.seek(max(0, size - _LONGEST_LINE))
            tail = f.read()
        self._file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)

    def write(self, stage: int, step: int, kind: Kind, metrics: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            ValueError: a metric is named like one of the fields `stage`, `step`, `kind`, `time`.
        """
        if taken := sorted(set(metrics).intersection(FIELDS)):
            raise ValueError(f"The metric name {taken[0]!r} is taken by a field of every line; rename the metric.")
        row: dict[str, Any] = {"stage": stage, "step": step, "kind": kind, "time": round(time.time(), 3)}
        row |= {name: _encodable(_plain(value)) for name, value in metrics.items()}
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")

    def truncate_after(self, stage: int, step: int) -> None:
        """Drops what lies after `step` of `stage`: a run resumed there writes it again."""
        self._file.close()
        kept = [row for row in _raw_rows(self.path) if (row["stage"], row["step"]) <= (stage, step)]
        partial = self.path.with_name(self.path.name + ".partial")
        with open(partial, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in kept)
        os.replace(partial, self.path)  # all or nothing, should the process be stopped here
        self._open()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _raw_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows that are whole; a line broken by a crash is skipped."""
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and isinstance(row.get("stage"), int) and isinstance(row.get("step"), int):
                yield row


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file, metrics as numbers (non-finite ones too); none if there is no such file."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    return [
        {name: value if name in FIELDS else float(value) for name, value in row.items()} for row in _raw_rows(path)
    ]


def _import_extra(module: str, extra: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        message = f"{purpose} needs the package {module}. Install it with: pip install 'vfm-jax[{extra}]'"
        raise ModuleNotFoundError(message, name=module) from None


class TensorBoard:
    """Writes event files for TensorBoard below the workdir, without TensorFlow.

    Curves are named `stage_0/train/loss`, because steps count within a stage.

    Raises:
        ModuleNotFoundError: the extra `tensorboard` is not installed.
    """

    def __init__(self, workdir: str | os.PathLike[str], config: Mapping[str, Any], *, folder: str = "tensorboard"):
        tensorboard = _import_extra("tensorboardX", "tensorboard", "Writing TensorBoard files")
        self._writer = tensorboard.SummaryWriter(os.path.join(workdir, folder))
        text = json.dumps(redact(config), indent=1, default=str)
        self._writer.add_text("config", "\n".join("    " + line for line in text.splitlines()))

    def write(self, stage: int, step: int, kind: Kind, metrics: Mapping[str, Any]) -> None:
        """Adds one point to each curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"stage_{stage}/{kind}/{name}", _plain(value), step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WandB:
    """Sends measurements to Weights & Biases; a resumed run continues under the id kept in the workdir.

    Curves are named `stage_0/train/loss` over `stage_0/step`. The config is uploaded without its credentials.

    Args:
        workdir: where W&B keeps its files and where the run's id is remembered.
        config: shown with the run.
        project: of W&B.
        run_name: shown by W&B; its own invention by default.
        mode: "online", "offline" (nothing leaves the machine until `wandb sync`) or "disabled"; by default as the
            environment variable WANDB_MODE says.

    Raises:
        ModuleNotFoundError: the extra `wandb` is not installed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        config: Mapping[str, Any],
        *,
        project: str = "vfm-jax",
        run_name: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
    ):
        wandb = _import_extra("wandb", "wandb", "Logging to Weights & Biases")
        remembered = pathlib.Path(workdir) / "wandb_run_id"
        self._run = wandb.init(
            dir=os.fspath(workdir),
            config=redact(config),
            project=project,
            name=run_name,
            mode=mode,
            id=remembered.read_text(encoding="utf-8").strip() if remembered.exists() else None,
            resume="allow",
        )
        remembered.write_text(self._run.id, encoding="utf-8")
        self._stages: set[int] = set()

    def write(self, stage: int, step: int, kind: Kind, metrics: Mapping[str, Any]) -> None:
        """Sends one point of each curve."""
        if stage not in self._stages:
            # W&B's own step only grows, while ours begins anew with every stage.
            self._run.define_metric(f"stage_{stage}/*", step_metric=f"stage_{stage}/step")
            self._stages.add(stage)
        row = {f"stage_{stage}/{kind}/{name}": _plain(value) for name, value in metrics.items()}
        self._run.log(row | {f"stage_{stage}/step": step})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


# Called with `workdir` and `config`, and with the fields of the recipe.
WRITERS: dict[str, Callable[..., MetricsWriter]] = {"tensorboard": TensorBoard, "wandb": WandB}
