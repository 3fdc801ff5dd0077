"""What each setting that saves memory saves, and costs: the training step of a ViT-B/16, supervised, 224 px.

    python scripts/bench/memory.py --batch=16 --steps=3              compiled and run on this machine's CPU
    python scripts/bench/memory.py --on=v5e:2x2 --batch=256          by the TPU's compiler, without one: jax[tpu]

One row a setting: MB of the state, of it on the host, and of all that the step sets aside beside it, on each device;
GB that it moves, by the compiler's account (none of a scan: it counts the body once); seconds to compile; seconds a
step (median). `--only=scan,full` picks rows whose names have these words.
"""

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfm_jax.plan import Target

SETTINGS = {
    "none": {},
    "remat=dots": {"remat": "dots"},
    "remat=full": {"remat": "full"},
    "scan": {"scan": True},
    "scan, remat=dots": {"scan": True, "remat": "dots"},
    "scan, remat=full": {"scan": True, "remat": "full"},
    "4 micro-batches": {"num_micro_batches": 4},
    "scan, 4 micro-batches": {"scan": True, "num_micro_batches": 4},
    "bfloat16 first moment": {"momentum_dtype": "bfloat16"},
    "adafactor": {"optimizer": "adafactor"},
    "moments on the host": {"offload": ("opt_state",)},
}


def recipe_of(setting: dict, args: argparse.Namespace) -> dict:
    """The recipe of one row."""
    encoder = dict(name="vit", variant="B/16", depth=args.depth, pooling="mean")
    encoder |= {field: setting[field] for field in ("scan", "remat") if field in setting}
    optimizer = dict(name=setting.get("optimizer", "adamw"))
    optimizer |= {field: setting[field] for field in ("momentum_dtype",) if field in setting}
    resize = dict(name="random_resized_crop", size=224)
    return dict(
        total_steps=1000,
        log_every_steps=1000,
        dtype=args.dtype,
        data=dict(name="mnist5k", split="train", batch_size=args.batch, resident=False),
        mesh=dict(fsdp=args.fsdp),
        views=dict(image=dict(ops=(resize, dict(name="normalize", mean=0.13, std=0.31)))),
        networks=dict(encoder=encoder, head=dict(name="linear_head", num_classes=1000)),
        objective=dict(name="supervised"),
        optimizer=optimizer,
        schedule=dict(name="constant", base=1e-3),
        num_micro_batches=setting.get("num_micro_batches", 1),
        offload=setting.get("offload", ()),
    )


def measure(setting: dict, args: argparse.Namespace, target: "Target") -> list[str]:
    """The figures of one row."""
    import jax

    from vfm_jax.core.backend import compiling_for
    from vfm_jax.core.sharding import sharded_init
    from vfm_jax.experiment import from_recipe
    from vfm_jax.train.layout import trace_step
    from vfm_jax.train.loop import blank_state

    experiment = from_recipe(recipe_of(setting, args), devices=target.devices)
    with compiling_for(target.backend):
        compiled, seconds = trace_step(experiment).compile(target.compiler_options)
    memory, moved = compiled.memory_analysis(), compiled.cost_analysis()["bytes accessed"]
    state, on_host = memory.argument_size_in_bytes, memory.host_argument_size_in_bytes
    figures = [f"{state / 1e6:,.0f}", f"{on_host / 1e6:,.0f}", f"{memory.temp_size_in_bytes / 1e6:,.0f}"]
    figures += ["" if setting.get("scan") else f"{moved / 1e9:,.1f}", f"{seconds:,.0f}"]
    if not args.steps:
        return figures
    blank, key, _ = blank_state(experiment)
    state = sharded_init(blank, experiment.rules, experiment.mesh, key, on_host=experiment.offload)
    took = []
    with experiment.train_batches(0) as batches:
        for _ in range(args.steps + 1):  # the first warms up
            batch = next(batches)
            began = time.perf_counter()
            state, _ = jax.block_until_ready(compiled(state, batch))
            took.append(time.perf_counter() - began)
    return [*figures, f"{statistics.median(took[1:]):,.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", default="", help="a slice of TPUs, such as v5e:2x4; without it this machine's CPU")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bfloat16" if args.on else "float32")
    if args.on and args.steps:
        sys.exit("--steps: a slice that is not there runs nothing.")

    from vfm_jax.plan import find_target

    target = find_target(args.on or "cpu")
    print("| setting | state MB | on the host | beside it MB | moved GB | compile s | step s |")
    print("|---|---|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        if all(word.strip() in name for word in args.only.split(",")):
            print(f"| {name} | {' | '.join(measure(setting, args, target))} |", flush=True)


if __name__ == "__main__":
    main()
