"""The command `vfm`: train, evaluate, report, inspect, and show a config.

    vfm train   --config=FILE[:ARG] --workdir=DIR [--config.FIELD=VALUE ...]
    vfm eval    --workdir=DIR [--config.FIELD=VALUE ...] [--json]
    vfm report  --workdir=DIR
    vfm inspect --config=FILE[:ARG] [--config.FIELD=VALUE ...] [--json]
    vfm config  --config=FILE[:ARG] [--config.FIELD=VALUE ...] [--json]

`train` in a workdir that holds a run of the same recipe continues it. Ctrl-C and SIGTERM save first.
Mistakes are answered in a few lines with exit code 2; --debug shows where they came up.
"""

import ast
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vfm_jax import __version__

Flags = dict[str, str]


class Command(NamedTuple):
    """A word of the command line: what it runs, and the flags it takes (True: a switch without a value)."""

    run: Callable[..., None]
    flags: Mapping[str, bool]


class _Mistake(Exception):
    """The command line cannot be understood; the message says why and what to write."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives the exit code: 0 done, 1 failed while running, 2 the user's to mend."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except BrokenPipeError:  # whoever read the output has left (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help") or {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        return _dispatch(argv[0], argv[1:])
    except Exception as error:
        code = _exit_code(error)
        if debug or code is None:
            raise
        print(f"vfm {argv[0]}: {error}", file=sys.stderr)
        return code


def _exit_code(error: Exception) -> int | None:
    """2 for the user's mistakes, 1 for a run that cannot go on, None for ours."""
    if isinstance(error, _Mistake):
        return 2
    from vfm_jax.core.errors import TrainingError, UserError

    if isinstance(error, ModuleNotFoundError) and "vfm-jax[" in str(error):  # an extra that is not installed
        return 2
    return 2 if isinstance(error, UserError) else 1 if isinstance(error, TrainingError) else None


def _dispatch(name: str, words: Sequence[str]) -> int:
    if name not in COMMANDS:
        raise _Mistake(f"no such command.{_nearest(name, COMMANDS)} Commands: {', '.join(COMMANDS)}. See vfm --help.")
    command = COMMANDS[name]
    flags, overrides = _read_words(words, command.flags)
    if command is not COMMANDS["report"]:
        _set_up_jax()
    command.run(flags, overrides)
    return 0


def _read_words(words: Sequence[str], known: Mapping[str, bool]) -> tuple[Flags, list[tuple[str, str]]]:
    """Flags of the command, and overrides of the config as (dotted path, text); `--flag value` is `--flag=value`."""
    flags: Flags = {}
    overrides: list[tuple[str, str]] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            hint = f" Did you forget the dashes? --{word}" if "=" in word else ""
            raise _Mistake(f"cannot use the word {word!r}.{hint}")
        name, is_set, value = word[2:].partition("=")
        if not is_set and words and not words[0].startswith("--") and not known.get(name, False):
            value, is_set = words.pop(0), "="
        if name.startswith("config."):
            if not is_set:
                raise _Mistake(f"--{name} has no value; write --{name}=VALUE.")
            overrides.append((name.removeprefix("config."), value))
        elif name not in known:
            listed = ", ".join(f"--{flag}" for flag in known)
            raise _Mistake(f"unknown flag --{name}.{_nearest(name, known, '--')} This command takes {listed}.")
        elif known[name]:
            flags[name] = value or "yes"
        elif not value:
            raise _Mistake(f"--{name} has no value; write --{name}={name.upper()}.")
        else:
            flags[name] = value
    return flags, overrides


def _nearest(word: str, known: Any, prefix: str = "") -> str:
    from vfm_jax.core.tables import nearest

    return nearest(word, known).replace("'", f"'{prefix}", 1)


def _set_up_jax() -> None:
    """Keeps compiled programs from one run to the next, in the user's cache folder, and memory from step to step."""
    import jax
    from absl import flags

    from vfm_jax.core.backend import only_cpu_installed
    from vfm_jax.core.memory import keep_freed_memory

    if only_cpu_installed():  # elsewhere a step's memory is the device's
        keep_freed_memory()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers and orbax read absl's flags
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "vfm_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load_recipe(location: str) -> dict[str, Any]:
    """The value of `get_config(ARG)` in the file `FILE`, for a location "FILE:ARG" or "FILE".

    Raises:
        UserError: no such file, no such function, or the recipe does not know the argument.
    """
    import importlib.util

    import ml_collections

    from vfm_jax.core.errors import UserError

    path, _, argument = location.partition(":")
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        siblings = [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
        raise UserError(
            f"--config: there is no file {path!r}.{_nearest(path, [p for p in siblings if p.endswith('.py')])}"
        )
    spec = importlib.util.spec_from_file_location("vfm_recipe", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config: {path!r} is no Python file; a recipe is a .py file with get_config().")
    module = importlib.util.module_from_spec(spec)
    home = pathlib.Path(path).resolve()
    sys.path[:0] = [str(above.parent) for above in home.parents if above.name == "configs"]  # for configs.common
    try:
        spec.loader.exec_module(module)
        recipe = module.get_config(argument) if argument else module.get_config()
    except Exception as error:  # a recipe is the user's code
        if isinstance(error, KeyError) and argument and error.args == (argument,):
            raise UserError(f"--config: {path!r} has no variant {argument!r}. Its docstring lists them.") from error
        raise UserError(f"--config: {location!r} gives no recipe. {type(error).__name__}: {error}") from error
    return ml_collections.ConfigDict(recipe).to_dict()


def override(recipe: Mapping[str, Any], overrides: Sequence[tuple[str, str]], origin: str) -> dict[str, Any]:
    """The recipe with its defaults written out and the overrides applied, each read as the type it replaces.

    Items of a tuple are named by their number (`views.image.ops.0.scale`); None takes a field out; a duration in one
    unit replaces the recipe's in another.

    Raises:
        UserError: a path that the recipe does not have (naming the nearest), or a value of another type.
    """
    from vfm_jax.core.durations import other_units
    from vfm_jax.core.errors import UserError
    from vfm_jax.experiment import complete

    full = _thaw(complete(recipe))
    for path, text in overrides:
        place: Any = full
        *parents, field = path.split(".")
        for depth, name in enumerate((*parents, field)):
            known = (
                place
                if isinstance(place, dict)
                else [str(i) for i in range(len(place))]
                if isinstance(place, list)
                else ()
            )
            if name not in known and not (place == {} and depth == len(parents)):  # {}: ema, mix; checked when built
                walked = ".".join(("config", *parents[:depth]))
                listed = f" Known there: {', '.join(sorted(known))}." if known else ""
                raise UserError(
                    f"--config.{path}: {origin} has no field {walked}.{name}.{_nearest(name, known)}{listed}"
                )
            name = int(name) if isinstance(place, list) else name
            if depth < len(parents):
                place = place[name]
                continue
            old = place[name] if isinstance(place, list) else place.get(name)
            value = _parse(text, _freeze(old), f"--config.{path}")
            if value is None:
                del place[name]  # back to the default, as in a stage
            else:
                place[name] = _thaw(value)
                for twin in other_units(field):  # total_steps=10 in place of the recipe's total_epochs=48
                    if twin in known:
                        place[twin] = None
    return {name: _freeze(value) for name, value in full.items()}


def _thaw(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _thaw(v) for k, v in value.items()}
    return [_thaw(v) for v in value] if isinstance(value, tuple | list) else value


def _freeze(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _freeze(v) for k, v in value.items()}
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value


def _parse(text: str, old: Any, flag: str) -> Any:
    """The value that `text` writes, of the type of the one it replaces."""
    from vfm_jax.core.errors import UserError

    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        words = {"true": True, "false": False, "none": None, "nan": math.nan, "inf": math.inf, "-inf": -math.inf}
        value = words.get(text.lower(), text)
    if value is None:
        return None
    if isinstance(old, tuple):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if type(old) is int and flag.rpartition("_")[2] in ("epochs", "examples", "percent"):  # 0.5 epochs are fine
        old = float(old)
        value = float(value) if type(value) is int else value
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag}={text}: expected a finite number.")
    if old is not None and type(value) is not type(old):
        wanted, found = (_TYPES.get(type(x), type(x).__name__) for x in (old, value))
        raise UserError(f"{flag}={text}: expected {wanted}, as {old!r} is; found {found}.")
    return value


_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a word",
    tuple: "a tuple",
    dict: "fields",
}


def _recipe(flags: Flags, overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The recipe of --config, or the one that --workdir was begun with."""
    if "config" in flags:
        recipe, origin = load_recipe(flags["config"]), flags["config"]
    else:
        path = pathlib.Path(flags.get("workdir", "")) / "config.json"
        if "workdir" not in flags or not path.is_file():
            raise _Mistake(
                "there is no recipe. Give one with --config=FILE, for example --config=configs/quickstart.py."
            )
        with open(path, encoding="utf-8") as f:
            recipe, origin = json.load(f), str(path)
    return override(recipe, overrides, origin)


def _workdir(flags: Flags) -> pathlib.Path:
    if "workdir" not in flags:
        raise _Mistake(
            "there is no --workdir: the folder for checkpoints and results, for example --workdir=runs/first."
        )
    return pathlib.Path(flags["workdir"])


def _print(rows: Sequence[Mapping[str, Any]], flags: Flags, title: str = "") -> None:
    from vfm_jax.report.tables import print_table, table_json

    if "json" in flags:
        print(table_json(rows))
    else:
        print_table(rows, title=title)


def _train(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    workdir, recipe = _workdir(flags), _recipe(flags, overrides)
    from vfm_jax.train.loop import train

    summary = train(recipe, workdir)
    if summary.get("evaluations"):
        _print(_comparison(summary["evaluations"]), flags, "Held-out accuracy")
    if not summary["finished"]:
        done, total = summary["steps"], summary["total_steps"]
        print(f"Stopped at step {done:,} of {total:,}. The same command goes on from there.")
    _report(flags, ())


def _comparison(evaluations: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    return [
        {"": name.replace("_", " ")}
        | {k: v for k, v in figures.items() if k.endswith("accuracy") and "train" not in k}
        for name, figures in evaluations.items()
    ]


def _eval(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    workdir, recipe = _workdir(flags), _recipe(flags, overrides)
    from vfm_jax.train.loop import evaluate

    step, figures = evaluate(recipe, workdir)
    _print([{"evaluation": name, "value": value} for name, value in figures.items()], flags, f"Step {step:,}")


def _report(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    del overrides
    from vfm_jax.core.errors import UserError
    from vfm_jax.report.page import render

    try:
        print(f"Report: {render(_workdir(flags))}", file=sys.stderr if "json" in flags else sys.stdout)
    except FileNotFoundError as error:
        raise UserError(str(error)) from error


def _inspect(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    recipe = _recipe(flags, overrides)
    from vfm_jax.train.loop import inspect

    for stage, rows in inspect(recipe).items():
        total = sum(row["count"] for row in rows)
        _print(rows, flags, f"{stage}: {total:,} parameters in {len(rows)} leaves")


def _config(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.core.trees import flatten_dict

    recipe = _recipe(flags, overrides)
    if "json" in flags:
        print(json.dumps(recipe, indent=1))
        return
    written = flatten_dict(load_recipe(flags["config"])) if "config" in flags else {}
    for field, value in sorted(flatten_dict(recipe).items()):
        note = (
            "  (default)"
            if field not in written
            else f"  (the file has {written[field]!r})"
            if written[field] != value
            else ""
        )
        print(f"config.{field} = {value!r}{note}")


COMMANDS = {
    "train": Command(_train, {"config": False, "workdir": False, "json": True}),
    "eval": Command(_eval, {"config": False, "workdir": False, "json": True}),
    "report": Command(_report, {"workdir": False}),
    "inspect": Command(_inspect, {"config": False, "json": True}),
    "config": Command(_config, {"config": False, "json": True}),
}

if __name__ == "__main__":
    sys.exit(main())
