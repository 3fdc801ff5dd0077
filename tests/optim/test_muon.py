"""Muon's matrices: which axes of our kernels they have, and that they come out near orthogonal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.models.vit import ViT
from vfm_jax.optim import make_optimizer
from vfm_jax.optim.muon import Axes, matrix_axes, orthogonalize
from vfm_jax.optim.schedules import constant


@pytest.mark.parametrize(("dtype", "expected"), [("float32", "f64"), ("bfloat16", "bf16")])
def test_newton_schulz_is_keller_jordans(golden_directory, dtype, expected):
    with np.load(golden_directory / "components" / "muon.npz") as golden:
        matrix, wanted = golden["ns_in"], golden[f"ns_out_{expected}"]
    found = jax.jit(lambda m: orthogonalize(m, dtype=dtype))(matrix)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    singular = np.linalg.svd(found, compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3


@pytest.mark.parametrize(
    ("name", "shape", "axes"),
    [
        ("encoder/transformer/block_0/attention/qkv/kernel", (6, 3, 2, 4), Axes((0,), (2, 3))),
        ("encoder/pool/key_value/kernel", (6, 2, 2, 4), Axes((0,), (2, 3))),
        ("encoder/pool/query/kernel", (6, 2, 4), Axes((0,), (1, 2))),
        ("encoder/transformer/block_0/attention/out/kernel", (2, 4, 6), Axes((0, 1), (2,))),
        ("encoder/stage_0/block_0/conv_1/kernel", (3, 3, 4, 8), Axes((0, 1, 2), (3,))),
        ("projector/kernel_1", (5, 7), Axes((0,), (1,))),
        ("encoder/positions", (4, 4, 6), None),
        ("encoder/transformer/block_0/attention/qkv/bias", (3, 2, 4), None),
        ("encoder/transformer/block_0/norm1/scale", (6,), None),
    ],
)
def test_axes_of_our_kernels(name, shape, axes):
    assert matrix_axes(name, shape) == axes


def test_a_kernel_of_unknown_shape_is_refused():
    with pytest.raises(UserError, match=r"which axes of encoder/kernel \(2, 3, 4\) are inputs"):
        matrix_axes("encoder/kernel", (2, 3, 4))


def first_step(params, grads):
    tx = make_optimizer(params, dict(name="muon", dtype="float32"), constant(base=1.0, total_steps=2))
    return tx.update(grads, tx.init(params), params)[0]


def test_query_key_and_value_are_three_matrices_and_heads_are_not(key):
    """The step of a fused kernel is that of its three parts; that of the output kernel is its flat matrix's."""
    qkv, out = jax.random.normal(key, (6, 3, 2, 4)), jax.random.normal(key, (2, 4, 6))
    fused = {"attention": {"qkv": {"kernel": qkv}, "out": {"kernel": out}}}
    flat = {f"part_{i}": {"kernel": qkv[:, i].reshape(6, 8)} for i in range(3)} | {
        "out": {"kernel": out.reshape(8, 6)}
    }
    found, expected = first_step(fused, fused)["attention"], first_step(flat, flat)
    for i in range(3):
        np.testing.assert_allclose(
            found["qkv"]["kernel"][:, i].reshape(6, 8), expected[f"part_{i}"]["kernel"], rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(found["out"]["kernel"].reshape(8, 6), expected["out"]["kernel"], rtol=1e-4, atol=1e-5)


def test_more_outputs_than_inputs_make_a_longer_step(key):
    wide = {"wide": {"kernel": jax.random.normal(key, (4, 16))}}
    tall = {"wide": {"kernel": wide["wide"]["kernel"].T}}
    singular = lambda tree: np.linalg.svd(tree["wide"]["kernel"], compute_uv=False)  # noqa: E731
    np.testing.assert_allclose(singular(first_step(wide, wide)), 2 * singular(first_step(tall, tall)), rtol=1e-3)


def test_matrices_of_a_scanned_vit_are_those_of_a_looped_one(key):
    """Parameters lie unstacked whether blocks are scanned or not; Muon has the blocks', AdamW the rest."""
    image = jnp.zeros((1, 8, 8, 3))
    states = []
    for scan in (False, True):
        vit = ViT("mu/4", 8, 2, 12, 2, scan=scan)
        params = {"encoder": jax.eval_shape(vit.init, key, image)["params"]}
        tx = make_optimizer(params, dict(name="muon"), constant(base=0.02, total_steps=2))
        states.append({name: leaf.shape for name, leaf in named_leaves(jax.eval_shape(tx.init, params)).items()})
    assert states[0] == states[1]
    by_muon = {name.split("encoder/")[1] for name in states[0] if "/trace/" in name}
    kernels = ("attention/qkv", "attention/out", "mlp/up", "mlp/down")
    assert by_muon == {f"transformer/block_{i}/{kernel}/kernel" for i in range(2) for kernel in kernels}
    assert any(name.endswith("mu/encoder/patch_embedding/kernel") for name in states[0])
