"""The training step of ViT-S/16, float32, on one CPU core: vfm_jax beside its peers.

    python scripts/bench/train_step.py --torch-python PY --big-vision DIR --flax-fast BENCH_TRAIN.PY
    python scripts/bench/train_step.py --task mae --torch-python PY --mae DIR --flax-fast BENCH_TRAIN.PY

Run it with a Python that has vfm_jax. `PY` has torch and timm; `DIR` are checkouts of google-research/big_vision and
facebookresearch/mae; `BENCH_TRAIN.PY` is the script that holds the bare Flax step (the project's peer benchmarks).
What is not given is left out. `--only a,b` picks some by name; `--torch-compile` adds torch.compile.
"vfm_jax-returning" gives freed memory back to the system, as a process does that `vfm` has not started.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import types

CORE = os.environ.get("BENCH_CORE")
if CORE:  # a worker: before any library counts the cores
    os.sched_setaffinity(0, {int(CORE)})

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
import interleave  # noqa: E402

# The same sizes for everyone: 224 px, patches of 16, 12 blocks of width 384; the decoder has 8 of width 512.
PIXELS, CLASSES = 224, 1000
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.05


def batch_of(size: int) -> tuple[object, object]:
    import numpy as np

    images = np.random.RandomState(0).randn(size, PIXELS, PIXELS, 3).astype("f4")
    return images, np.random.RandomState(1).randint(0, CLASSES, size).astype("i4")


def ours(task: str, batch_size: int, *, return_memory: bool) -> None:
    """The real step: objective, optimizer, measurements; the views hand the batch on as it is."""
    from vfm_jax.core.memory import keep_freed_memory

    if not return_memory:
        keep_freed_memory()  # as `vfm train` does, before JAX starts

    import jax
    import numpy as np

    from vfm_jax.models import MODELS
    from vfm_jax.objectives import OBJECTIVES
    from vfm_jax.optim import SCHEDULES, make_optimizer
    from vfm_jax.train.state import init_state
    from vfm_jax.train.step import make_step

    images, labels = batch_of(batch_size)
    index = np.arange(batch_size, dtype=np.int32)
    batch = {"image": images, "label": labels, "index": index, "epoch": np.zeros_like(index)}
    batch = jax.device_put(batch | {"valid": np.ones(batch_size, bool)})
    if task == "supervised":
        networks = {"encoder": MODELS["vit"](variant="S/16"), "head": MODELS["linear_head"](num_classes=CLASSES)}
    else:
        encoder = MODELS["vit"](variant="S/16", positions="sincos2d", pooling="mean")
        networks = {"encoder": encoder, "decoder": MODELS["masked_decoder"]()}
    objective = OBJECTIVES[task](**networks)
    key = jax.random.key(0)
    shapes = jax.eval_shape(objective.init, key, batch).params
    schedule = SCHEDULES["constant"](base=LEARNING_RATE, warmup_steps=0, total_steps=10**6)
    optimizer = make_optimizer(shapes, {"name": "adamw", "weight_decay": WEIGHT_DECAY}, schedule)
    state = jax.jit(lambda key, batch: init_state(objective, optimizer, batch, key, with_ema=False))(key, batch)
    step = make_step(objective, optimizer, lambda key, batch: batch, seed=0, schedule=schedule)
    _serve_jax(step, state, batch)


def big_vision(checkout: str, batch_size: int) -> None:
    """big_vision's ViT with its own defaults (class token), and optax's AdamW."""
    import flax.io  # noqa: F401  (looks for TensorFlow, and must not find the stand-in below)
    import jax
    import jax.numpy as jnp
    import optax

    # Its helpers import TensorFlow for files on cloud storage, which a step does not touch.
    files = types.ModuleType("tensorflow.io.gfile")
    storage = types.ModuleType("tensorflow.io")
    storage.gfile = files
    sys.modules |= {
        "tensorflow": types.ModuleType("tensorflow"),
        "tensorflow.io": storage,
        "tensorflow.io.gfile": files,
    }
    sys.path.insert(0, checkout)
    from big_vision.models import vit

    images, labels = map(jnp.asarray, batch_of(batch_size))
    model = vit.Model(CLASSES, variant="S/16", pool_type="tok")

    def loss_of(params: object) -> jax.Array:
        logits = model.apply({"params": params}, images, train=True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(state: tuple, batch: object) -> tuple:
        params, moments = state
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), {"loss": loss}

    params = jax.jit(lambda key: model.init(key, images[:1])["params"])(jax.random.key(0))
    _serve_jax(step, (params, jax.jit(optimizer.init)(params)), None)


def _serve_jax(step, state, batch) -> None:
    import jax

    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    held = [state]
    del state

    def turn() -> None:
        held[0], measured = compiled(held[0], batch)
        float(measured["loss"])

    turn()
    temporaries = compiled.memory_analysis().temp_size_in_bytes / 2**20
    interleave.serve({"temporaries_mb": round(temporaries)}, turn)


def torch_peer(task: str, checkout: str, batch_size: int, compile_it: bool) -> None:
    """timm's ViT, or the authors' MAE; fused AdamW."""
    import functools

    import timm
    import timm.models.vision_transformer as timm_vit
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(array) for array in batch_of(batch_size))
    images, labels = images.permute(0, 3, 1, 2).contiguous(), labels.long()
    if task == "supervised":
        model = timm.create_model("vit_small_patch16_224", num_classes=CLASSES)
        loss_of = lambda network: torch.nn.functional.cross_entropy(network(images), labels)  # noqa: E731
    else:
        # Two names that timm and numpy have dropped since are put back.
        import numpy as np

        class Block(timm_vit.Block):
            def __init__(self, *args, qk_scale=None, **kwargs):
                super().__init__(*args, **kwargs)

        timm_vit.Block, np.float = Block, float  # noqa: NPY001
        sys.path.insert(0, checkout)
        import models_mae

        model = models_mae.MaskedAutoencoderViT(
            embed_dim=384,
            depth=12,
            num_heads=6,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
            norm_pix_loss=True,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        )
        loss_of = lambda network: network(images)[0]  # noqa: E731
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    network = torch.compile(model) if compile_it else model

    def turn() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(network)
        loss.backward()
        optimizer.step()
        loss.item()

    turn()
    interleave.serve({"torch": torch.__version__, "timm": timm.__version__}, turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="supervised", choices=["supervised", "mae"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python")
    parser.add_argument("--torch-compile", action="store_true")
    parser.add_argument("--big-vision")
    parser.add_argument("--mae")
    parser.add_argument("--flax-fast")
    parser.add_argument("--only", default="")
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir(), "vfm_jax_bench"))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker.startswith("vfm_jax"):
        return ours(args.task, args.batch_size, return_memory=args.worker.endswith("returning"))
    if args.worker == "big_vision":
        return big_vision(args.big_vision, args.batch_size)
    if args.worker:
        return torch_peer(args.task, args.mae, args.batch_size, args.worker.endswith("compile"))

    def own(python: str, worker: str) -> list[str]:
        return [python, str(HERE / "train_step.py"), *sys.argv[1:], "--worker", worker]

    commands = {}
    torch_name = "timm" if args.task == "supervised" else "authors"
    if args.torch_python and (args.mae or args.task == "supervised"):
        commands[torch_name] = own(args.torch_python, torch_name)
        if args.torch_compile:
            commands[f"{torch_name}-compile"] = own(args.torch_python, f"{torch_name}-compile")
    if args.big_vision and args.task == "supervised":
        commands["big_vision"] = own(sys.executable, "big_vision")
    if args.flax_fast:
        task = {"supervised": "vit", "mae": "mae"}[args.task]
        options = f"--impl flax-fast --task {task} --bs {args.batch_size} --cpu {args.core}".split()
        commands["flax-fast"] = [sys.executable, args.flax_fast, *options]
    commands["vfm_jax"] = own(sys.executable, "vfm_jax")
    commands["vfm_jax-returning"] = own(sys.executable, "vfm_jax-returning")
    if args.only:
        commands = {name: command for name, command in commands.items() if name in args.only.split(",")}
    environment = {"BENCH_CORE": str(args.core), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    specs = [interleave.Spec(name, command, environment) for name, command in commands.items()]
    interleave.compare(specs, rounds=args.rounds, items=args.batch_size, base=torch_name, logs=args.logs)
    return None


if __name__ == "__main__":
    main()
