"""The training step on an accelerator, bfloat16: images per second and MFU, beside timm and big_vision in one run.

    python scripts/bench/accelerator_step.py --task vit_b --batch 512 --torch-python PY --big-vision DIR
    python scripts/bench/accelerator_step.py --task vit_l --batch 256 --torch-python PY --big-vision DIR
    python scripts/bench/accelerator_step.py --task mae_l --batch 512
    python scripts/bench/accelerator_step.py --task dinov2_l --batch 64

The step is that of `vfm train`, views and measurements included, on blank images that lie on the device; the peers'
is their model, AdamW and the loss, timm's with torch.compile and bfloat16 autocast. `PY` has torch and timm, `DIR` is
a checkout of google-research/big_vision. MFU counts each implementation by our model FLOPs for the same network and
the data sheet's peak (`core/chips.py`); on a device that is not in it, such as a CPU, none is told.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the device's memory
import interleave  # noqa: E402

PIXELS, CLASSES = 224, 1000
NO_VIEWS = '({"name": "normalize", "mean": 0.5, "std": 0.5},)'
SUPERVISED = (
    ("views.image.ops", NO_VIEWS),
    ("mix", "None"),
    ("data.canvas_size", str(PIXELS)),
    ("networks.head.init_std", "0.01"),
)
TASKS = {  # recipe, and what is changed in it
    "vit_b": ("supervised/vit_s16_in1k.py", (*SUPERVISED, ("networks.encoder.variant", "B/16"))),
    "vit_l": ("supervised/vit_s16_in1k.py", (*SUPERVISED, ("networks.encoder.variant", "L/16"))),
    "mae_l": ("masked/mae_vit_b16_in1k.py", (("networks.encoder.variant", "L/16"),)),
    "dinov2_l": ("self_distillation/dinov2_vit_l16_in1k.py", ()),
}


def ours(task: str, batch_size: int, steps: int, changes: list[str]) -> None:
    import jax
    import jax.numpy as jnp

    from vfm_jax.cli import load_recipe, override
    from vfm_jax.core.chips import chip_of
    from vfm_jax.core.sharding import sharded_init
    from vfm_jax.experiment import blank_source, from_recipe
    from vfm_jax.train.loop import blank_state, jitted_step
    from vfm_jax.train.stages import read_stages
    from vfm_jax.train.step import step_flops

    location, own = TASKS[task]
    written = [tuple(change.split("=", 1)) for change in changes]
    overrides = (*own, ("data.batch_size", str(batch_size)), ("evals", "None"), ("baselines", "None"), *written)
    recipe = read_stages(override(load_recipe(str(ROOT / "configs" / location)), overrides, location))[0].recipe
    experiment = from_recipe(recipe, source=blank_source(recipe))
    blank, key, abstract = blank_state(experiment)
    state = sharded_init(blank, experiment.rules, experiment.mesh, key, on_host=experiment.offload)
    batch = {
        name: jax.device_put(jnp.ones(leaf.shape, leaf.dtype), leaf.sharding)
        for name, leaf in experiment.abstract_batch().items()
    }
    step = jitted_step(experiment, abstract)
    chip = chip_of(jax.devices()[0].device_kind)
    ready = {
        "flops": step_flops(experiment.objective, experiment.views, abstract, batch).total,
        "peak": chip and jax.device_count() * chip.matmul / chip.devices,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    held = [state]
    del state

    def turn() -> None:
        for _ in range(steps):
            held[0], measured = step(held[0], batch)
        float(measured["loss"])

    turn()
    interleave.serve(ready, turn)


def big_vision(checkout: str, task: str, batch_size: int, steps: int) -> None:
    import types

    sys.path.insert(0, checkout)
    stub = types.ModuleType("big_vision.utils")  # TensorFlow, which the model does not need
    stub.__getattr__ = lambda name: None
    import big_vision

    sys.modules["big_vision.utils"] = big_vision.utils = stub
    import jax
    import jax.numpy as jnp
    import optax
    from big_vision.models import vit

    model = vit.Model(
        CLASSES, variant=variant(task), pool_type="gap", posemb="sincos2d", rep_size=384, dtype_mm="bfloat16"
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=1e-4, mu_dtype=jnp.bfloat16)
    )
    images = jnp.ones((batch_size, PIXELS, PIXELS, 3), jnp.float32)
    labels = jnp.zeros(batch_size, jnp.int32)

    def step(params: object, moments: object) -> tuple:
        def loss_of(params: object) -> jax.Array:
            logits = model.apply({"params": params}, images, train=True)[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    params = jax.jit(lambda key: model.init(key, images[:1])["params"])(jax.random.key(0))
    compiled, held = jax.jit(step, donate_argnums=(0, 1)), [params, jax.jit(optimizer.init)(params)]
    del params

    def turn() -> None:
        for _ in range(steps):
            *held[:], loss = compiled(*held)
        float(loss)

    turn()
    interleave.serve({}, turn)


def timm_peer(task: str, batch_size: int, steps: int) -> None:
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = {"B/16": "base", "L/16": "large"}[variant(task)]
    model = timm.create_model(f"vit_{size}_patch16_224", num_classes=CLASSES, global_pool="avg").to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    network = torch.compile(model)
    images = torch.ones(batch_size, 3, PIXELS, PIXELS, device=device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)

    def turn() -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        loss.item()

    turn()
    interleave.serve({"torch": torch.__version__, "timm": timm.__version__}, turn)


def variant(task: str) -> str:
    return {"vit_b": "B/16", "vit_l": "L/16"}[task]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="vit_b")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20, help="in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python")
    parser.add_argument("--big-vision")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of our recipe")
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir(), "vfm_jax_bench"))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker == "vfm_jax":
        return ours(args.task, args.batch, args.steps, args.set)
    if args.worker == "big_vision":
        return big_vision(args.big_vision, args.task, args.batch, args.steps)
    if args.worker == "timm":
        return timm_peer(args.task, args.batch, args.steps)

    pythons = {"vfm_jax": sys.executable}
    if args.task.startswith("vit"):
        pythons |= {"big_vision": sys.executable} if args.big_vision else {}
        pythons |= {"timm": args.torch_python} if args.torch_python else {}
    specs = [
        interleave.Spec(name, [python, __file__, *sys.argv[1:], f"--worker={name}"], {})
        for name, python in pythons.items()
    ]
    items = args.steps * args.batch
    results = interleave.compare(specs, rounds=args.rounds, items=items, base="vfm_jax", logs=args.logs, clock="wall")
    told = results["vfm_jax"]
    if told["peak"]:
        for name, found in results.items():
            mfu = args.steps * told["flops"] / statistics.median(found["s"]) / told["peak"]
            print(f"{name}: MFU {mfu:.1%}")


if __name__ == "__main__":
    main()
