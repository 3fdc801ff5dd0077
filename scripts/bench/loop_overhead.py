"""What the loop costs beside the jitted step: ViT-S/16 MAE at 224 px, batch 8, from a folder of JPEGs, one CPU core.

    python scripts/bench/loop_overhead.py [--core 0] [--steps 30] [--rounds 3]

Run it with a Python that has vfm_jax. The recipe is trained by `vfm_jax.train.loop` as it is, and with networks of
the same leaves but next to no size and a step that leaves them alone. What remains then is the loop: reading,
decoding, handing over batches, dispatch, measurements, the progress line, metrics.jsonl. CPU seconds of the process,
all its threads. Evaluation and checkpoints have intervals of their own and are not in it.
"""

import argparse
import contextlib
import io
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

WARM_UP = 3  # steps that compile and fill the queues


def write_images(folder: pathlib.Path, count: int = 64) -> None:
    """JPEGs of ImageNet's usual size, 500 x 375 pixels and about 100 KB."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (94, 125, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=95)


def recipe(images: pathlib.Path, steps: int, *, idle: bool) -> dict:
    tiny = dict(width=24, mlp_dim=24) if idle else {}  # a state that costs nothing to carry
    return dict(
        total_steps=steps,
        data=dict(name="folder", path=str(images), canvas_size=(375, 500), batch_size=8),
        views=dict(
            image=dict(ops=(dict(name="random_resized_crop", size=224), dict(name="normalize", mean=0.5, std=0.5)))
        ),
        networks=dict(
            encoder=dict(name="vit", variant="S/16", positions="sincos2d", pooling="mean", **tiny),
            decoder=dict(name="masked_decoder", **(dict(width=64) if idle else {})),
        ),
        objective=dict(name="mae"),
        optimizer=dict(name="adamw", weight_decay=0.05),
        schedule=dict(name="constant", base=1e-4),
        checkpoints=dict(every_steps=10**9),
    )


def seconds_per_step(images: pathlib.Path, steps: int, *, idle: bool) -> float:
    import jax
    import jax.numpy as jnp

    from vfm_jax.train import loop, record

    turns: list[float] = []

    class TimedWatch(record.Watch):
        def stepped(self, *args: object) -> None:
            super().stepped(*args)
            turns.append(time.process_time())

    def make_idle_step(*args: object, **kwargs: object):
        def step(state, batch):
            measured = dict.fromkeys(("loss", "learning_rate", "gradient_norm"), jnp.zeros(()))
            norms = jnp.zeros((len(jax.tree.leaves(state.params)),))
            return state.replace(step=state.step + 1), measured | {"leaf_gradient_norms": norms}

        return step

    kept = record.Watch, loop.make_step
    record.Watch, loop.make_step = TimedWatch, make_idle_step if idle else loop.make_step
    try:
        with tempfile.TemporaryDirectory() as workdir, contextlib.redirect_stdout(io.StringIO()):
            loop.train(recipe(images, steps, idle=idle), workdir)
    finally:
        record.Watch, loop.make_step = kept
    return (turns[-1] - turns[WARM_UP - 1]) / (len(turns) - WARM_UP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})  # before JAX counts the cores
    whole, loop = [], []
    with tempfile.TemporaryDirectory() as folder:
        images = pathlib.Path(folder)
        write_images(images)
        for _ in range(args.rounds):
            whole.append(seconds_per_step(images, args.steps, idle=False))
            loop.append(seconds_per_step(images, 10 * args.steps, idle=True))
            print(f"whole {whole[-1]:.3f} s a step, loop {loop[-1] * 1e3:.1f} ms", flush=True)
    share = statistics.median(own / (all_ - own) for own, all_ in zip(loop, whole, strict=True))
    print(f"loop / step: {share:.2%}; peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
