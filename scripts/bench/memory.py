"""What each setting that saves memory saves, and costs: the training step of a ViT-B/16, supervised, 224 px.

Without a class token and with a sigmoid loss, as the peer in `../shared/bench/peers/aot_bigvision_vit.py`; with its
bfloat16 first moment in the rows that say so.

    python scripts/bench/memory.py --batch=16 --steps=3              compiled and run on this machine's CPU
    python scripts/bench/memory.py --on=v5e:2x2 --batch=256          by the TPU's compiler, without one: jax[tpu]
    python scripts/bench/memory.py --on=h100:4 --batch=512           by the GPUs' compiler, without one: jax[cuda13]

One row a setting: MB of the state, of all that the step sets aside beside it, and at the peak, on each device; GB
that it reads from and writes to main memory; seconds to compile; a step, in milliseconds: the median of those that
ran, or as `vfm plan` reckons, from best to worst. `--only=scan,full` picks rows whose names have these words.
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
    "bfloat16 first moment, scan, remat=full": {"momentum_dtype": "bfloat16", "scan": True, "remat": "full"},
    "adafactor": {"optimizer": "adafactor"},
    "moments on the host": {"offload": ("opt_state",)},
}


def recipe_of(setting: dict, args: argparse.Namespace) -> dict:
    """The recipe of one row."""
    encoder = dict(name="vit", variant="B/16", depth=args.depth, pooling="mean", class_token=False)
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
        objective=dict(name="supervised", loss="sigmoid"),
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
    from vfm_jax.plan.stage import compile_step
    from vfm_jax.train.layout import trace_step
    from vfm_jax.train.loop import blank_state

    experiment = from_recipe(recipe_of(setting, args), devices=target.devices)
    with compiling_for(target.backend):
        made = compile_step(trace_step(experiment), target)
    state = made.executable.memory_analysis().argument_size_in_bytes
    figures = [f"{size / 1e6:,.0f}" for size in (state, made.temporary_bytes, made.peak_bytes)]
    figures += [f"{made.traffic_bytes / 1e9:,.1f}", f"{made.seconds:,.0f}"]
    if made.time is not None:
        figures.append(f"{1e3 * made.time.best:,.0f} to {1e3 * made.time.worst:,.0f}")
    if not args.steps:
        return figures
    blank, key, _ = blank_state(experiment)
    state = sharded_init(blank, experiment.rules, experiment.mesh, key, on_host=experiment.offload)
    took = []
    with experiment.train_batches(0) as batches:
        for _ in range(args.steps + 1):  # the first warms up
            batch = next(batches)
            began = time.perf_counter()
            state, _ = jax.block_until_ready(made.executable(state, batch))
            took.append(time.perf_counter() - began)
    return [*figures, f"{1e3 * statistics.median(took[1:]):,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--on", default="", help="devices as of vfm plan, such as v5e:2x4; without it this machine's CPU"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--fsdp", type=int, default=1)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    args.dtype = args.dtype or ("bfloat16" if args.on else "float32")
    if args.on and args.steps:
        sys.exit("--steps: devices that are not there run nothing.")

    from vfm_jax.core.errors import UserError
    from vfm_jax.plan import find_target

    target = find_target(args.on or "cpu")
    print("| setting | state MB | beside it MB | peak MB | moved GB | compile s | step ms |")
    print("|---|---|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        if all(word.strip() in name for word in args.only.split(",")):
            try:
                figures = measure(setting, args, target)
            except UserError as error:
                figures = [str(error)]
            print(f"| {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
