"""Start-up: `vfm --help`, and `vfm train` until its first step, with an empty and a full compilation cache.

    python scripts/bench/startup.py [--config configs/quickstart.py] [--rounds 5]

Run it with a Python that has vfm_jax. The first step counts as taken when its measurements stand in metrics.jsonl.
Wall and CPU seconds, median [range]; then the imports that cost most (seconds, with everything they bring along).
"""

import argparse
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VFM = [sys.executable, "-m", "vfm_jax.cli"]


def help_seconds() -> tuple[float, float]:
    return _timed(lambda: subprocess.run([*VFM, "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL))


def first_step_seconds(config: str, cache: str) -> tuple[float, float]:
    """From the process' start to the first line of its measurements; then it is killed."""
    with tempfile.TemporaryDirectory() as workdir:

        def run() -> None:
            metrics = pathlib.Path(workdir, "metrics.jsonl")
            command = [*VFM, "train", f"--config={config}", f"--workdir={workdir}", "--config.log_every_steps=1"]
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
            with subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            ) as process:
                while not (metrics.is_file() and metrics.stat().st_size):
                    if process.poll() is not None:
                        sys.exit(process.stderr.read().decode())
                    time.sleep(0.01)
                process.kill()

        return _timed(run)


def _timed(run) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of the child it starts."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def dearest_imports(count: int) -> list[tuple[float, str]]:
    """Of what `vfm train` imports, and of everything below it."""
    command = [sys.executable, "-X", "importtime", "-c", "import vfm_jax.train.loop"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stderr.splitlines()
    rows = [re.fullmatch(r"import time:\s+(\d+) \|\s+(\d+) \|(\s*)(\S+)", line) for line in lines]
    # top levels of packages only: their parts are in them
    found = [(int(row[2]) / 1e6, row[4]) for row in rows if row and "._" not in row[4] and row[4].count(".") <= 1]
    return sorted(found, reverse=True)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    measured = {"vfm --help": [], "first step, empty cache": [], "first step, full cache": []}
    for _ in range(args.rounds):
        measured["vfm --help"].append(help_seconds())
        with tempfile.TemporaryDirectory() as cache:
            measured["first step, empty cache"].append(first_step_seconds(args.config, cache))
            measured["first step, full cache"].append(first_step_seconds(args.config, cache))
    print("| | wall s | CPU s |\n|---|---|---|")
    for name, seconds in measured.items():
        cells = [f"{statistics.median(s):.2f} [{min(s):.2f}-{max(s):.2f}]" for s in zip(*seconds, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    print()
    for seconds, name in dearest_imports(20):
        print(f"{seconds:6.3f} {name}")


if __name__ == "__main__":
    main()
