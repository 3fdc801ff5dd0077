"""Measures implementations against each other on a machine that others use too.

Every implementation is a worker: a process that has done its set-up and then takes one turn whenever it is asked.
Only one works at a time, so all share the machine's drift, and the ratio of two is taken round by round. Workers
pinned to a core with one thread report CPU seconds, which being preempted does not lengthen.

A worker prints lines of "@" and JSON: one when it is ready, one for every line "go" on its standard input (holding at
least {"s": seconds}), and one after "end" (holding "peak_rss_mb").
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Spec(NamedTuple):
    """A worker's name, command, and what its environment has besides ours."""

    name: str
    command: list[str]
    environment: dict[str, str]


def serve(ready: dict[str, Any], turn: Callable[[], Any]) -> None:
    """A worker's side: answers until "end", then exits."""
    _answer(ready)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        wall, cpu = time.perf_counter(), time.process_time()
        turn()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        _answer({"s": cpu, "wall": wall})
    _answer({"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
    os._exit(0)


def _answer(values: dict[str, Any]) -> None:
    print("@" + json.dumps(values), flush=True)


class _Worker:
    def __init__(self, spec: Spec, logs: pathlib.Path):
        self.name = spec.name
        logs.mkdir(parents=True, exist_ok=True)
        with open(logs / f"{spec.name}.log", "w") as errors:
            self._process = subprocess.Popen(
                spec.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **spec.environment},
            )
        self.ready = self._read()

    def ask(self, word: str) -> dict[str, Any]:
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.name} ended with code {self._process.wait()}")


def compare(
    specs: Sequence[Spec], *, rounds: int, items: int, base: str, logs: pathlib.Path, clock: str = "s"
) -> dict[str, dict[str, Any]]:
    """Prints a table, and gives seconds, ratios to `base` and memory by name. One more round warms up, uncounted.

    The clock is "s", a worker's CPU seconds; or "wall", for an accelerator that nobody else uses.
    """
    workers = []
    for spec in specs:
        try:
            workers.append(_Worker(spec, logs))
            print(f"# {spec.name} ready: {workers[-1].ready}", file=sys.stderr, flush=True)
        except RuntimeError as error:
            print(f"# left out: {error}, see {logs / spec.name}.log", file=sys.stderr, flush=True)
    turns = {worker.name: [] for worker in workers}
    for _ in range(rounds + 1):
        for worker in workers:
            turns[worker.name].append(worker.ask("go"))
        print("# " + "  ".join(f"{n} {t[-1][clock]:.3f}" for n, t in turns.items()), file=sys.stderr, flush=True)
    results = {
        worker.name: {"s": [turn[clock] for turn in turns[worker.name][1:]], **worker.ready, **worker.ask("end")}
        for worker in workers
    }
    base = base if base in results else workers[0].name
    unit = "CPU-s" if clock == "s" else "s"
    print(f"| | items per {unit} (median) | ratio to {base}: median [range] | peak RSS MB | ready |")
    print("|---|---|---|---|---|")
    for worker in workers:
        found = results[worker.name]
        ratios = [ours / own for ours, own in zip(results[base]["s"], found["s"], strict=True)]
        found["ratio"] = statistics.median(ratios)
        rate = items / statistics.median(found["s"])
        print(
            f"| {worker.name} | {rate:.3f} | {found['ratio']:.3f} [{min(ratios):.3f}-{max(ratios):.3f}] "
            f"| {found['peak_rss_mb']:.0f} | {json.dumps(worker.ready)} |",
            flush=True,
        )
    return results
