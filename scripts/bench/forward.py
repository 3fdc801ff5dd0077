"""The forward pass of an encoder, float32, on one CPU core: ours beside timm's, with the same weights.

    python scripts/bench/forward.py --torch-python PY [--model vit_base_patch16_224] [--batch-size 8] [--rounds 5]

Run it with a Python that has vfm_jax; `PY` has torch, timm and safetensors. timm makes the model (random weights) and
saves it as its hub folder; ours is what `load_pretrained` makes of that folder, so both compute the same.
"""

import argparse
import os
import pathlib
import sys
import tempfile

CORE = os.environ.get("BENCH_CORE")
if CORE:  # a worker: before any library counts the cores
    os.sched_setaffinity(0, {int(CORE)})

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
import interleave  # noqa: E402


def images_of(folder: pathlib.Path, batch_size: int) -> object:
    import json

    import numpy as np

    _, *size = json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"]
    return np.random.RandomState(0).randn(batch_size, *size, 3).astype("f4")


def ours(folder: pathlib.Path, batch_size: int) -> None:
    from vfm_jax.core.memory import keep_freed_memory

    keep_freed_memory()  # as `vfm` does, before JAX starts

    import jax
    import numpy as np

    from vfm_jax.weights import load_pretrained

    loaded = load_pretrained(folder)
    images = jax.device_put(images_of(folder, batch_size))
    run = jax.jit(lambda variables, images: loaded.model.apply(variables, images).tokens)
    tokens = np.asarray(run(loaded.variables, images))
    np.save(folder / "ours.npy", tokens)
    interleave.serve({"jax": jax.__version__}, lambda: run(loaded.variables, images).block_until_ready())


def timm_peer(folder: pathlib.Path, name: str, batch_size: int) -> None:
    import numpy as np
    import timm
    import torch
    from timm.models import save_for_hf

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    if not (folder / "config.json").is_file():
        save_for_hf(model, folder)
    images = torch.from_numpy(np.ascontiguousarray(images_of(folder, batch_size).transpose(0, 3, 1, 2)))

    def turn() -> None:
        with torch.inference_mode():
            model.forward_features(images)

    with torch.inference_mode():
        np.save(folder / "timm.npy", model.forward_features(images).numpy())
    interleave.serve({"torch": torch.__version__, "timm": timm.__version__}, turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir(), "vfm_jax_bench"))
    parser.add_argument("--worker", nargs=2, default=(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, folder = args.worker
        if name == "timm":
            return timm_peer(pathlib.Path(folder), args.model, args.batch_size)
        return ours(pathlib.Path(folder), args.batch_size)

    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        environment = {"BENCH_CORE": str(args.core), "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        pythons = {"timm": args.torch_python, "vfm_jax": sys.executable}
        specs = [
            interleave.Spec(name, [python, __file__, *sys.argv[1:], "--worker", name, folder], environment)
            for name, python in pythons.items()
        ]
        interleave.compare(specs, rounds=args.rounds, items=args.batch_size, base="timm", logs=args.logs)
        tokens, theirs = (np.load(pathlib.Path(folder, f"{name}.npy")) for name in ("ours", "timm"))
        if theirs.ndim == 4 and theirs.shape[-1] != tokens.shape[-1]:  # a map, channels first
            theirs = theirs.transpose(0, 2, 3, 1)
        difference = np.abs(tokens - theirs.reshape(tokens.shape)).max() / np.abs(theirs).max()
        print(f"largest difference of the tokens: {difference:.1e} of the largest value")
    return None


if __name__ == "__main__":
    main()
