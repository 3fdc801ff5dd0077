"""The command `vfm`: train, evaluate, report, inspect, show a config; look at data; weights in and out, and features.

    vfm train   --config=FILE[:ARG] --workdir=DIR [--config.FIELD=VALUE ...] [--profile=FIRST:LAST]
    vfm eval    --workdir=DIR [--config.FIELD=VALUE ...] [--json]
    vfm eval    --config=FILE[:ARG] --config.init.weights=PATH [--json]      public weights, without a run
    vfm report  --workdir=DIR
    vfm inspect --config=FILE[:ARG] [--config.FIELD=VALUE ...] [--sharding] [--devices=N] [--json]
    vfm plan    CONFIG --on=DEVICES [--config.FIELD=VALUE ...] [--examples=N] [--json]
    vfm config  --config=FILE[:ARG] [--config.FIELD=VALUE ...] [--json]

    vfm data       CONFIG|PATH [--out=data_report.html] [--json]   what is in it, what is wrong, how fast it is read
    vfm data stats CONFIG|PATH [--write=RECIPE.py] [--json]        mean and std of each channel, for normalize
    vfm data index CONFIG|PATH [--json]                            reads it once and keeps what it found

    vfm weights list [--json]                                   public checkpoints by name
    vfm weights inspect PATH [--names] [--json]                 what a file holds, and how it would be read
    vfm weights import PATH --out=DIR                           to a folder of ours
    vfm weights export RUN_OR_PATH --format=hf|timm --out=DIR   to a folder that transformers or timm loads
    vfm weights verify A B --images=DIR [--atol=1e-4]           layer by layer
    vfm embed   --weights=PATH --data=DIR --out=FILE.npz|FILE.parquet

PATH is a file, a folder, a name from `vfm weights list`, or hf:OWNER/REPOSITORY. Where a file does not tell, say
--heads=N, --family=NAME or --image-size=N (inspect, import, verify, embed).
CONFIG is FILE.py[:ARG], and takes --config.FIELD=VALUE; a PATH of images takes --config.data.FIELD=VALUE. --limit=N
looks at N records of each split; --step-seconds=N, or --workdir=DIR of a run, says what a recipe needs (`data`).
`inspect --sharding` compiles the step and tells where each leaf lies, and what the devices send each other; with
--devices=N as on so many, simulated.
`plan` says before launch what a run takes on devices that need not be there, and whether it fits: v5e:16x16,
v5p:8x8x8, v6e:4x4, h100:8, h200:1 or cpu. Data that are not here are known by their size (--examples=N).
`train` in a workdir that holds a run of the same recipe continues it. Ctrl-C and SIGTERM save first. --profile=10:15
traces these steps into DIR/profile.
On several hosts or GPUs start the same `train` or `eval` in each process; on TPU pods, under SLURM and Open MPI they
find each other, elsewhere by --coordinator=HOST:PORT --num-processes=N --process-id=I (docs/multihost.md).
Mistakes are answered in a few lines with exit code 2; --debug shows where they came up.
"""

import ast
import contextlib
import json
import math
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vfm_jax import __version__

Flags = dict[str, str]


class Command(NamedTuple):
    """A word of the command line: what it runs, and the flags it takes (True: a switch without a value).

    `words` are those that stand without dashes, in order; they are handed over as flags of these names. `opens` are
    the flags that name weights: a file of them is looked at, and refused, before JAX is imported.
    """

    run: Callable[..., None]
    flags: Mapping[str, bool]
    words: Sequence[str] = ()
    opens: Sequence[str] = ()


class _Mistake(Exception):
    """The command line cannot be understood; the message says why and what to write."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives the exit code: 0 done, 1 failed while running, 2 the user's to mend.

    A run that Ctrl-C stopped has saved, and is done; 130 is for Ctrl-C anywhere else, and for a second one.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(argv)
    except BrokenPipeError:  # whoever read the output has left (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _leave(0, "its output was closed")
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        code = _leave(130, "Ctrl-C")
    except Exception as error:
        if _company() is None:
            raise
        traceback.print_exc()
        code = _leave(1, f"{type(error).__name__}: {error}")
    return code


def _company() -> Any:
    """The module `core.distributed` where this process is one of several; else None."""
    module = sys.modules.get("vfm_jax.core.distributed")
    return module if module is not None and module.in_company() else None


def _leave(code: int, reason: str = "") -> int:
    """The exit code, once this process's part in a run of several is over: see `core.distributed.leave`."""
    if company := _company():
        company.leave(code, reason)
    return code


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
        return _leave(_dispatch(argv[0], argv[1:]))
    except Exception as error:
        code = _exit_code(error)
        if code != 2 and (company := _company()):
            company.hear_of_others()
        if debug or code is None:
            raise
        name = " ".join(argv[:2]) if " ".join(argv[:2]) in COMMANDS else argv[0]
        print(f"vfm {name}: {error}", file=sys.stderr)
        return _leave(code, str(error))


def _exit_code(error: Exception) -> int | None:
    """2 for the user's mistakes, 1 for a run that cannot go on, None for ours."""
    if isinstance(error, _Mistake):
        return 2
    from vfm_jax.core.errors import TrainingError, UserError

    if isinstance(error, ModuleNotFoundError) and "vfm-jax[" in str(error):  # an extra that is not installed
        return 2
    return 2 if isinstance(error, UserError) else 1 if isinstance(error, TrainingError) else None


def _dispatch(name: str, words: Sequence[str]) -> int:
    words = list(words)
    if name == "weights" and words and not words[0].startswith("-"):
        name = f"weights {words.pop(0)}"
    if words and f"{name} {words[0]}" in COMMANDS:  # a folder of that name is ./stats
        name = f"{name} {words.pop(0)}"
    if name not in COMMANDS:
        if name.split()[0] == "weights":
            listed = [word.split()[1] for word in COMMANDS if word.startswith("weights ")]
            raise _Mistake(f"say what to do: vfm weights {', '.join(listed[:-1])} or {listed[-1]}. See vfm --help.")
        raise _Mistake(f"no such command.{_nearest(name, COMMANDS)} Commands: {', '.join(COMMANDS)}. See vfm --help.")
    command = COMMANDS[name]
    own, words = _read_own_words(name, command.words, words)
    flags, overrides = _read_words(words, command.flags)
    flags |= own
    for path in (flags[flag] for flag in command.opens if flag in flags):
        if os.path.isfile(path):
            _look_at(path)
    if name not in ("report", "weights list"):  # they compute nothing
        _set_up_jax()
    command.run(flags, overrides)
    return 0


def _look_at(path: str) -> None:
    """Reads the headers of a file of weights; raises what `open_weights` raises."""
    from vfm_jax.weights.files import open_weights

    open_weights(pathlib.Path(path)).close()


def _read_own_words(name: str, wanted: Sequence[str], words: Sequence[str]) -> tuple[Flags, Sequence[str]]:
    """The words without dashes that the command begins with, by name, and the rest."""
    given = {key: word for key, word in zip(wanted, words, strict=False) if not word.startswith("--")}
    if missing := [key for key in wanted if key not in given]:
        raise _Mistake(
            f"there is no {missing[0].upper()}; write vfm {name} {' '.join(wanted).upper()} ... See vfm --help."
        )
    return given, words[len(wanted) :]


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

    from vfm_jax.core.backend import only_cpu
    from vfm_jax.core.memory import keep_freed_memory

    if only_cpu():
        keep_freed_memory()  # elsewhere a step's memory is the device's
        jax.config.update("jax_platforms", "cpu")  # libtpu, there for plans, looks for TPUs with much noise
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
    from vfm_jax.experiment import complete, with_init

    of_init = [(path, text) for path, text in overrides if path.split(".")[0] == "init"]
    others = [(path, text) for path, text in overrides if path.split(".")[0] != "init"]
    begun = _overridden({"init": {}} | with_init(recipe), of_init, origin)  # first: it may fill in the networks
    return _overridden(complete(begun), others, origin)


def _overridden(recipe: Mapping[str, Any], overrides: Sequence[tuple[str, str]], origin: str) -> dict[str, Any]:
    from vfm_jax.core.durations import other_units
    from vfm_jax.core.errors import UserError

    full = _thaw(recipe)
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
        return None if text == "None" else text
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
    if scheme := re.match(r"[a-z0-9]+://", flags["workdir"]):
        raise _Mistake(
            f"--workdir={flags['workdir']}: runs are written to folders. Mount the bucket ({scheme[0]} with gcsfuse "
            "or s3fs) and name the folder, as scripts/launch does for gs:// (docs/launching.md)."
        )
    return pathlib.Path(flags["workdir"])


def _print(rows: Sequence[Mapping[str, Any]], flags: Flags, title: str = "") -> None:
    from vfm_jax.report.tables import print_table, table_json

    if "json" in flags:
        print(table_json(rows))
    else:
        print_table(rows, title=title)


def _join(command: str, flags: Flags, recipe: Mapping[str, Any]) -> bool:
    """Makes this process one of several, where it is one; whether it is the one that prints for all."""
    from vfm_jax.core.cluster import alone_in_an_allocation, find_cluster

    number = flags.get("process-id")
    if number is not None and not number.isdigit():
        raise _Mistake(f"--process-id={number}: expected a whole number, counted from 0.")
    cluster = find_cluster(
        os.environ,
        coordinator=flags.get("coordinator"),
        num_processes=_number(flags, "num-processes", 0) or None,
        process_id=None if number is None else int(number),
    )
    if cluster is None:
        if line := alone_in_an_allocation(os.environ):
            print(line, file=sys.stderr)
        return True
    from vfm_jax.core.distributed import initialize, is_first
    from vfm_jax.core.trees import flatten_dict
    from vfm_jax.report.environment import code_digest, versions
    from vfm_jax.report.redaction import redact
    from vfm_jax.train.record import plain

    same = {"command": command, "--workdir": flags.get("workdir"), **versions(), "code": code_digest()}
    fields = flatten_dict(_numbered({"config": redact(plain(recipe))}))
    initialize(cluster, {name: str(value) for name, value in (same | fields).items()})
    return is_first()


def _numbered(value: Any) -> Any:
    """Lists as mappings from their items' numbers, as overrides call them."""
    if isinstance(value, list) and value:
        value = {str(i): item for i, item in enumerate(value)}
    return {name: _numbered(item) for name, item in value.items()} if isinstance(value, dict) else value


def _train(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.train.profile import read_steps

    profile = read_steps(flags["profile"]) if "profile" in flags else None
    workdir, recipe = _workdir(flags), _recipe(flags, overrides)
    is_first = _join("train", flags, recipe)
    from vfm_jax.train.loop import train

    summary = train(recipe, workdir, profile=profile)
    if not is_first:
        return
    if summary.get("evaluations"):
        _print(_comparison(summary["evaluations"]), flags, "Held-out accuracy")
    if not summary["finished"]:
        done, total = summary["steps"], summary["total_steps"]
        print(f"Stopped at step {done:,} of {total:,}. The same command goes on from there.")
    _report(flags, ())


def _comparison(evaluations: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    return [
        {"": name.replace("_", " ")}
        | {k: v for k, v in figures.items() if (k.endswith("accuracy") or "recall" in k) and "train" not in k}
        for name, figures in evaluations.items()
    ]


def _eval(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    recipe = _recipe(flags, overrides)
    public = "workdir" not in flags and bool(recipe.get("init", {}).get("weights"))
    workdir = None if public else _workdir(flags)
    is_first = _join("eval", flags, recipe)
    from vfm_jax.train.loop import evaluate

    with contextlib.redirect_stdout(sys.stderr if "json" in flags else sys.stdout):  # the account of the weights
        step, figures = evaluate(recipe, workdir)
    if not is_first:
        return
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
    if "devices" in flags:
        _simulate(_number(flags, "devices", 1))
    if "sharding" in flags:
        _inspect_sharding(recipe, flags)
        return
    from vfm_jax.train.layout import inspect

    for stage, rows in inspect(recipe).items():
        total = sum(row["count"] for row in rows)
        _print(rows, flags, f"{stage}: {total:,} parameters in {len(rows)} leaves")


def _inspect_sharding(recipe: Mapping[str, Any], flags: Flags) -> None:
    from vfm_jax.train.layout import layouts

    print("Compiling the step of each stage; nothing runs.", file=sys.stderr)
    if "json" in flags:
        told = [one._asdict() | {"messages": [m._asdict() for m in one.messages]} for one in layouts(recipe)]
        print(json.dumps(told, indent=1))
        return
    for layout in layouts(recipe):
        words = ", ".join(f"{axis}={size}" for axis, size in layout.mesh.items())
        _print(layout.leaves, flags, f"{layout.stage} on {words}")
        kinds = [
            {
                "kind": row["kind"],
                "leaves": row["leaves"],
                "split": row["split"],
                "MB": row["bytes"] / 1e6,
                "MB per device": row["bytes per device"] / 1e6,
            }
            for row in layout.kinds
        ]
        print()
        _print(kinds, flags, "In all")
        rows: list[dict[str, Any]] = [
            {
                "message": message.kind,
                "devices": message.group_size,
                "times a step": message.times,
                "MB a step": message.num_bytes / 1e6,
                "of": message.operation.removeprefix("jit(step)/")[-100:],
            }
            for message in layout.messages
        ]
        print()
        if rows:
            total = sum(row["MB a step"] for row in rows)
            _print(rows[:_MESSAGES], flags, f"What the devices send each other: {total:,.1f} MB a step")
        else:
            print("The devices send each other nothing.")
        if others := rows[_MESSAGES:]:
            rest = sum(row["MB a step"] for row in others)
            print(f"and {len(others)} others, {rest:,.1f} MB (--json has them)")
        print(f"Beside the state and the batch a step takes {layout.temporary_bytes / 1e6:,.1f} MB on each device.")


def _plan(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    location = flags.pop("config")
    if "on" not in flags:
        raise _Mistake("say for which devices: --on=v5e:4x4, v5p:8x8x8, v6e:16x16, h100:8, h200:1 or cpu.")
    import jax

    from vfm_jax.plan import find_target, plan
    from vfm_jax.plan.words import as_json, tell

    jax.config.update("jax_enable_compilation_cache", False)  # the time that compiling takes is one of the figures
    target = find_target(flags["on"])
    recipe = _recipe(flags | {"config": location}, overrides)
    planned = plan(recipe, target, _number(flags, "examples", 1) if "examples" in flags else None)
    if "json" in flags:
        print(json.dumps([as_json(one) for one in planned], indent=1))
        return
    for one in planned:
        tell(one, target)


def _simulate(count: int) -> None:
    import jax

    from vfm_jax.core.backend import simulate_devices

    simulate_devices(count)
    if jax.default_backend() != "cpu" or jax.device_count() != count:
        raise _Mistake(f"--devices={count}: JAX has started with {jax.device_count()} devices.")


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


def _weights_list(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.weights.describe import checkpoint_table

    _refuse(overrides)
    _print(checkpoint_table(), flags, "Public checkpoints")


def _weights_inspect(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.weights.describe import describe

    _refuse(overrides)
    rows, account = describe(flags["path"], names="names" in flags, **_given(flags))
    _print(rows, flags, "" if "json" in flags else flags["path"])
    if "json" not in flags:
        print(account)


def _weights_import(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.weights.describe import import_weights

    _refuse(overrides)
    account = import_weights(flags["path"], _needed(flags, "out"), **_given(flags))
    print(account)
    print(
        f"Written to {flags['out']}: use it as config.init.weights, in load_pretrained, or with vfm weights export."
    )


def _weights_export(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.export.weights import export_weights

    _refuse(overrides)
    made = export_weights(flags["path"], _needed(flags, "format"), _needed(flags, "out"), **_given(flags))
    for note in made.notes:
        print(f"  {note}")
    print(f"{made.tensors} tensors as {made.family} in {made.folder}.")


def _weights_verify(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.core.errors import TrainingError
    from vfm_jax.embed import list_images
    from vfm_jax.weights.verify import verify

    _refuse(overrides)
    folder = pathlib.Path(_needed(flags, "images"))
    files = [folder / name for name in list_images(folder)][: _number(flags, "count", 8)]
    tolerance = {name: _tolerance(flags, name) for name in ("rtol", "atol") if name in flags}
    rows = verify(flags["a"], flags["b"], files, **tolerance, **_given(flags))
    _print([row._asdict() for row in rows], flags, f"{flags['a']} and {flags['b']} on {len(files)} images")
    if wrong := [row for row in rows if not row.agrees]:
        raise TrainingError(
            f"they differ by more than the tolerance from {wrong[0].name} on ({wrong[0].difference:.2e})."
        )


def _embed(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax.embed import embed

    _refuse(overrides)
    more: dict[str, Any] = {"batch_size": _number(flags, "batch-size", 64)} | (
        {"pool": flags["pool"]} if "pool" in flags else {}
    )
    weights, data, out = (_needed(flags, name) for name in ("weights", "data", "out"))
    made = embed(weights, data, out, **more, **_given(flags))
    again = f", {made.resumed:,} of them from before" if made.resumed else ""
    print(f"{made.num_images:,} images{again}: {made.width} numbers each, in {made.path}.")
    if made.bad:
        name, reason = next(iter(made.bad.items()))
        print(f"{len(made.bad)} could not be read ({name}: {reason}); all are in {made.path.name}.bad.jsonl.")


def _data(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax import data_report
    from vfm_jax.report.data_page import findings, write_page

    out = pathlib.Path(flags.get("out", "data_report.html"))
    _check_page(out)
    limit, (step_seconds, step_from) = _limit(flags), _step_seconds(flags)
    experiment, splits = _splits(flags, overrides)
    if step_seconds and not experiment:
        raise _Mistake("--step-seconds and --workdir say how fast a recipe trains; with a PATH there is none.")
    with _bars() as progress:
        indexes = data_report.measure(splits, limit=limit, progress=progress, say=_tell)
    title = flags["path"] if experiment else os.path.basename(os.path.normpath(flags["path"]))
    made = data_report.report(
        title, splits, indexes, experiment=experiment, step_seconds=step_seconds, step_from=step_from
    )
    if "json" in flags:
        print(json.dumps(_finite(made.facts), indent=1))
    else:
        _print(_overview(made.facts["splits"]), flags, flags["path"])
        for line in findings(made.facts) or ["Nothing wrong was found."]:
            print(line)
        if made.facts["normalize"]:
            print(f"For a recipe: {made.facts['normalize']}")
        if rate := made.facts["rate"]:
            print(
                f"One core reads {rate['images_per_core_second']:,.0f} images a second, of {rate['num_cores']} here."
            )
        if needs := made.facts["needs"]:
            for row in needs["rows"]:
                wanted = f"{row['images_per_second']:,.0f} images/s, {row['cores']:.2g} cores"
                print(f"  A step of {row['step_seconds']:g} s needs {wanted}: {row['verdict']}.")
            print(needs["said"])
        if crop := made.facts["crop"]:
            print(crop["said"])
    path = write_page(out, made.facts, made.pictures)
    print(f"Page: {path}", file=sys.stderr if "json" in flags else sys.stdout)


def _overview(splits: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    def size(facts: Mapping[str, Any]) -> str:
        return " x ".join(str(facts["size"][side]["median"]) for side in ("height", "width")) if facts["size"] else ""

    def classes(counts: Mapping[str, int]) -> str | int | None:
        seen = sum(1 for count in counts.values() if count)
        return (seen if seen == len(counts) else f"{seen:,} of {len(counts):,}") if counts else None

    return [
        {
            "split": name,
            "records": facts["num_records"],
            "looked at": facts["num_read"],
            "bad": facts["num_bad"],
            "classes": classes(facts["classes"]),
            "median size": size(facts),
            "channels": facts["channels"],
            "dtype": facts["dtype"],
        }
        for name, facts in splits.items()
    ]


def _data_index(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax import data_report

    limit = _limit(flags)
    _, splits = _splits(flags, overrides)
    with _bars() as progress:
        indexes = data_report.measure(splits, limit=limit, progress=progress, say=_tell)
    rows = [
        {
            "split": name,
            "records": len(splits[name].source),
            "read now": index.num_read,
            "from before": len(index.rows) - index.num_read,
            "bad": int((~index.good).sum()),
        }
        for name, index in indexes.items()
    ]
    _print(rows, flags, flags["path"])


def _data_stats(flags: Flags, overrides: Sequence[tuple[str, str]]) -> None:
    from vfm_jax import data_report
    from vfm_jax.core.errors import UserError

    limit, write = _limit(flags), flags.get("write")
    recipe, _ = _what(flags, overrides)
    places = _normalizations(recipe) if recipe else []
    if write and not recipe:
        raise _Mistake("--write writes a recipe anew, and a PATH has none; give a CONFIG.")
    if write and not places:
        raise UserError(f"{flags['path']} has no normalize among its views: nothing to write into. Add one to views.")
    if write and (os.path.exists(write) or not write.endswith(".py")):
        raise UserError(f"--write={write}: expected the name of a .py file that is not there yet.")
    _, splits = _splits(flags, overrides)
    first = next(iter(splits))
    with _bars() as progress:
        indexes = data_report.measure({first: splits[first]}, limit=limit, progress=progress, say=_tell)
    found = data_report.statistics_of(indexes[first])
    mean, std = data_report.rounded(found)
    if not mean:
        raise UserError(f"{flags['path']} has no image that can be read: nothing to measure.")
    fields = ("mean", "std", "low", "high", "not_finite_ratio")
    rows = [{"channel": c} | {name: getattr(found, name)[c] for name in fields} for c in range(len(mean))]
    _print(rows, flags, f"{found.num_images:,} images of {first}, {found.num_pixels:,} pixels")
    say = sys.stderr if "json" in flags else sys.stdout
    for c in (c for c, value in enumerate(found.std) if not value):
        print(f"Channel {c} never changes; its std is written as 1.", file=say)
    print(data_report.normalize_line(found), file=say)
    for place in places:
        print(f"  --config.{place}.mean='{mean!r}' --config.{place}.std='{std!r}'", file=say)
    if write and recipe:
        text = _with_normalization(recipe, places, mean, std)
        about = f"{flags['path']} with the mean and std of {found.num_images:,} of its own training images."
        _write_recipe(pathlib.Path(write), text, about)
        print(f"Written to {write}: vfm train --config={write} ...", file=say)


def _is_recipe(what: str) -> bool:
    return what.partition(":")[0].endswith(".py")


def _what(flags: Flags, overrides: Sequence[tuple[str, str]]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The recipe of a CONFIG; or None, and how the images of a PATH are read."""
    what = flags["path"]
    if _is_recipe(what):
        return override(load_recipe(what), overrides, what), {}
    from vfm_jax.core.tables import keywords
    from vfm_jax.data.sources import SOURCES
    from vfm_jax.data_report import spec_at

    spec = spec_at(what)
    if other := next((path for path, _ in overrides if path.split(".")[0] != "data"), None):
        raise _Mistake(f"--config.{other} means nothing for a PATH; of it, --config.data.FIELD can be set.")
    defaults = {
        name: None if p.default is p.empty else p.default for name, p in keywords(SOURCES[spec["name"]]).items()
    }
    read = _overridden({"data": defaults | spec}, overrides, what)["data"]
    return None, {name: value for name, value in read.items() if name in spec or value != defaults.get(name)}


def _splits(flags: Flags, overrides: Sequence[tuple[str, str]]) -> tuple[Any, dict[str, Any]]:
    """The experiment of a CONFIG, or None; and the splits of its data by name, or those of a PATH."""
    from vfm_jax.data_report import splits_at, splits_of

    recipe, spec = _what(flags, overrides)
    return splits_of(recipe) if recipe else (None, splits_at(spec))


def _normalizations(recipe: Mapping[str, Any]) -> list[str]:
    """Where the recipe normalizes: dotted paths of the operations, in its views and those of its stages."""
    found: list[str] = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value.get("name") == "normalize" and {"mean", "std"} <= set(value):
            found.append(path)
        elif isinstance(value, Mapping | tuple | list):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for name, item in items:
                walk(item, f"{path}.{name}")

    for field in ("views", "eval_views", "stages"):
        walk(recipe.get(field, ()), field)
    return found


def _with_normalization(
    recipe: Mapping[str, Any], places: Sequence[str], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    full = _thaw(recipe)
    for place in places:
        operation = full
        for name in place.split("."):
            operation = operation[int(name) if isinstance(operation, list) else name]
        operation |= {"mean": mean, "std": std}
    return _freeze(full)


def _write_recipe(path: pathlib.Path, recipe: Mapping[str, Any], about: str) -> None:
    """A recipe file with every field written out; what it holds are numbers, words, tuples and dicts."""
    import pprint

    text = pprint.pformat(dict(recipe), width=110, sort_dicts=False, compact=True)
    path.write_text(
        f'"""{about} Every field stands here; edit it as any recipe."""\n\n'
        "import ml_collections\n\n\n"
        "def get_config() -> ml_collections.ConfigDict:\n"
        '    """The recipe."""\n'
        f"    return ml_collections.ConfigDict({text})\n",
        encoding="utf-8",
    )


def _check_page(out: pathlib.Path) -> None:
    from vfm_jax.core.errors import UserError

    if out.suffix not in (".html", ".htm") or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out={out}: expected the name of an .html file, in a folder that is there.")


def _limit(flags: Flags) -> int | None:
    return _number(flags, "limit", 0) or None


def _step_seconds(flags: Flags) -> tuple[float | None, str]:
    """How long a step of the recipe takes, and who says so."""
    if "step-seconds" in flags:
        value = _tolerance(flags, "step-seconds")
        if not value:
            raise _Mistake("--step-seconds=0: expected a number above zero.")
        return value, "--step-seconds"
    if "workdir" not in flags:
        return None, ""
    from vfm_jax.core.errors import UserError

    path = pathlib.Path(flags["workdir"]) / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return summary["batch_size"] / summary["images_per_second"], str(path)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"--workdir={flags['workdir']}: {path} does not say how fast it trained. Give the folder of a run, or "
            "--step-seconds=N."
        ) from error


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _finite(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Progress bars on the error output: name of what is read -> what takes the number done, and of all."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], TextColumn("{task.completed:,.0f}/{task.total:,.0f} records"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:

        def begin(name: str) -> Callable[[int, int], None]:
            task = bars.add_task(name, total=1)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield begin


def _refuse(overrides: Sequence[tuple[str, str]]) -> None:
    if overrides:
        raise _Mistake(f"--config.{overrides[0][0]} means nothing here: this command has no recipe.")


def _needed(flags: Flags, name: str) -> str:
    if name not in flags:
        raise _Mistake(f"there is no --{name}; write --{name}={name.upper()}. See vfm --help.")
    return flags[name]


def _number(flags: Flags, name: str, default: int) -> int:
    if name not in flags:
        return default
    if not flags[name].isdigit() or int(flags[name]) == 0:
        raise _Mistake(f"--{name}={flags[name]}: expected a whole number, one or more.")
    return int(flags[name])


def _tolerance(flags: Flags, name: str) -> float:
    try:
        value = float(flags[name])
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise _Mistake(f"--{name}={flags[name]}: expected a number, 0 or more, such as 1e-4.")
    return value


def _given(flags: Flags) -> dict[str, Any]:
    """What the user says of a file that does not tell: keywords of `weights.load_pretrained`."""
    given: dict[str, Any] = {}
    if "image-size" in flags:
        sides = flags["image-size"].replace("x", ",").split(",")
        if not all(side.isdigit() for side in sides) or len(sides) > 2:
            raise _Mistake(f"--image-size={flags['image-size']}: expected a number, or HEIGHTxWIDTH.")
        given["image_size"] = int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
    if "heads" in flags:
        given["heads"] = _heads(flags["heads"])
    return given | {name: flags[name] for name in ("family", "dtype") if name in flags}


def _heads(text: str) -> int | dict[str, int]:
    """A number, or one for each of several networks: encoder=12,decoder=16."""
    parts = dict(part.split("=", 1) for part in text.split(",")) if "=" in text else {"": text}
    if not all(number.isdigit() and int(number) > 0 for number in parts.values()):
        raise _Mistake(f"--heads={text}: expected a whole number, or one for each network: encoder=12,decoder=16.")
    return {role: int(number) for role, number in parts.items()} if "=" in text else int(text)


_MESSAGES = 20  # the largest, which are shown

_PROCESSES = {"coordinator": False, "num-processes": False, "process-id": False}
_FILE = {"heads": False, "family": False, "image-size": False}

COMMANDS = {
    "train": Command(_train, {"config": False, "workdir": False, "profile": False, "json": True} | _PROCESSES),
    "eval": Command(_eval, {"config": False, "workdir": False, "json": True} | _PROCESSES),
    "report": Command(_report, {"workdir": False}),
    "inspect": Command(_inspect, {"config": False, "sharding": True, "devices": False, "json": True}),
    "plan": Command(_plan, {"on": False, "examples": False, "json": True}, ("config",)),
    "config": Command(_config, {"config": False, "json": True}),
    "data": Command(
        _data, {"limit": False, "out": False, "step-seconds": False, "workdir": False, "json": True}, ("path",)
    ),
    "data stats": Command(_data_stats, {"limit": False, "write": False, "json": True}, ("path",)),
    "data index": Command(_data_index, {"limit": False, "json": True}, ("path",)),
    "weights list": Command(_weights_list, {"json": True}),
    "weights inspect": Command(_weights_inspect, {"names": True, "json": True, **_FILE}, ("path",), ("path",)),
    "weights import": Command(_weights_import, {"out": False, **_FILE}, ("path",), ("path",)),
    "weights export": Command(
        _weights_export,
        {"format": False, "out": False, "dtype": False, "family": False, "heads": False},
        ("path",),
        ("path",),
    ),
    "weights verify": Command(
        _weights_verify,
        {"images": False, "count": False, "rtol": False, "atol": False, "json": True, **_FILE},
        ("a", "b"),
        ("a", "b"),
    ),
    "embed": Command(
        _embed,
        {"weights": False, "data": False, "out": False, "batch-size": False, "pool": False, "dtype": False, **_FILE},
        opens=("weights",),
    ),
}

if __name__ == "__main__":
    sys.exit(main())
