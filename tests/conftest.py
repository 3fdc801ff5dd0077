"""Eight simulated CPU devices, strict promotion, shapes checked at run time; shared fixtures."""

import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling takes far longer than running here, and in the commands that tests start: twelve tests of two objectives
# take 161 s of one core as users compile, 44 s so. Fixture `compiled_as_by_users` is for what holds only there. Eight
# devices that meet on two busy cores may wait long for the last of them, and XLA would end the process after 40 s. It
# also ends at a flag that it does not know: after jaxlib 0.10 these were not tried, and the first is gone.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600 --xla_cpu_collective_timeout_seconds=600 "
    * importlib.metadata.version("jaxlib").startswith("0.10.")
    + os.environ.get("XLA_FLAGS", "")
)

import pathlib

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# Shapes in signatures are checked in tests and nowhere else.
install_import_hook(["vfm_jax.nn", "vfm_jax.losses", "vfm_jax.models", "vfm_jax.metrics"], "beartype.beartype")

REPOSITORY = pathlib.Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags


@pytest.fixture
def key():
    """A fixed key."""
    return jax.random.key(0)


@pytest.fixture
def compiled_as_by_users():
    """Programs are made with XLA's usual optimizations: two may then be equal bit for bit."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_supervised():
    """Of a recipe: the smallest networks that learn two classes, and how. The test adds data, views and a length."""
    return dict(
        networks=dict(
            encoder=dict(name="vit", variant="mu/8", width=16, mlp_dim=24, depth=1, pooling="mean"),
            head=dict(name="linear_head", num_classes=2),
        ),
        objective=dict(name="supervised"),
        optimizer=dict(name="adamw"),
        schedule=dict(name="constant", base=1e-2),
    )


@pytest.fixture(scope="session")
def shared():
    """The folder of real images and reference numbers beside the repository; the test is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (real images and reference numbers), which is not here")
    return SHARED


@pytest.fixture(scope="session")
def golden_directory():
    """Small reference arrays kept in the repository; tests/golden/README.md says where each is from."""
    return pathlib.Path(__file__).parent / "golden"
