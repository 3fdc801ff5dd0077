"""Weights larger than memory is wide: what a load holds beside the sharded network is about one leaf."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.weights.files import Spec, save_shards

REPOSITORY = pathlib.Path(__file__).parents[2]

# The shape of DINOv3's ViT-7B (Siméoni et al., 2025, arXiv:2508.10104) at a quarter of its width and a fifth of its
# depth: SwiGLU, rotary positions, LayerScale, four registers. As there, the fused queries, keys and values are the
# largest leaf.
CONFIG = dict(
    model_type="dinov3_vit", architectures=["DINOv3ViTModel"], hidden_size=1024, num_hidden_layers=8,
    num_attention_heads=8, intermediate_size=2048, use_gated_mlp=True, hidden_act="silu", image_size=64,
    patch_size=16, num_channels=3, num_register_tokens=4, query_bias=False, key_bias=False, value_bias=False,
    proj_bias=True, mlp_bias=True, layer_norm_eps=1e-5, rope_theta=100.0, layerscale_value=1e-5,
)  # fmt: skip
SLACK = 3e6  # bytes: Python's objects and JAX's; the largest leaf has 12.6e6, the whole network 342e6

CHILD = """
import gc, json, sys, threading, time
import jax, numpy as np
from vfm_jax.core.sharding import make_mesh
from vfm_jax.weights.load import load_pretrained

def memory():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssAnon"))

mesh = make_mesh(data=1, fsdp=8)
load_pretrained(sys.argv[2], mesh=mesh)  # what is compiled, imported and cached once is no matter of the weights
gc.collect()
peak, done = memory(), threading.Event()
before = peak

def watch():
    global peak
    while not done.wait(0.0005):
        peak = max(peak, memory())

thread = threading.Thread(target=watch)
thread.start()
loaded = load_pretrained(sys.argv[1], mesh=mesh)
jax.block_until_ready(loaded.variables)
peak = max(peak, memory())
done.set()
thread.join()
leaves = jax.tree.leaves(loaded.variables)
state = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
split = sum(len({str(s.index) for s in leaf.addressable_shards}) == 8 for leaf in leaves)
print(json.dumps(dict(beside=peak - before - state, largest=max(l.nbytes for l in leaves), state=state, split=split)))
"""


def _write(folder, config, dtype, max_shard_bytes=50_000_000):
    d, f, depth = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    shapes = {
        "embeddings.cls_token": (1, 1, d),
        "embeddings.mask_token": (1, 1, d),
        "embeddings.register_tokens": (1, config["num_register_tokens"], d),
        "embeddings.patch_embeddings.weight": (d, 3, 16, 16),
        "embeddings.patch_embeddings.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for i in range(depth):
        b = f"layer.{i}."
        shapes |= {b + f"attention.{x}_proj.weight": (d, d) for x in "qkvo"} | {b + "attention.o_proj.bias": (d,)}
        shapes |= {b + f"norm{j}.{part}": (d,) for j in (1, 2) for part in ("weight", "bias")}
        shapes |= {b + f"layer_scale{j}.lambda1": (d,) for j in (1, 2)}
        shapes |= {b + f"mlp.{x}_proj.weight": (f, d) for x in ("gate", "up")} | {b + "mlp.down_proj.weight": (d, f)}
        shapes |= {b + f"mlp.{x}_proj.bias": (f,) for x in ("gate", "up")} | {b + "mlp.down_proj.bias": (d,)}
    folder.mkdir()
    specs = {name: Spec(shape, np.dtype(dtype)) for name, shape in shapes.items()}
    tensors = ((name, np.full(spec.shape, 0.01, dtype)) for name, spec in specs.items())
    save_shards(folder, specs, tensors, max_shard_bytes=max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_memory_beside_the_sharded_network_is_bounded_by_the_largest_leaf(tmp_path, dtype):
    _write(tmp_path / "large", CONFIG, dtype)
    _write(tmp_path / "small", CONFIG | dict(hidden_size=64, intermediate_size=128), dtype)
    assert len(list((tmp_path / "large").glob("*.safetensors"))) > 2
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "large"), str(tmp_path / "small")],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["split"] >= 4 * CONFIG["num_hidden_layers"]  # kernels lie on eight devices, an eighth on each
    assert found["state"] > 10 * found["largest"]
    assert found["beside"] < 1.2 * found["largest"] + SLACK, found
