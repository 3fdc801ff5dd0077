"""Other people's weights, in and out: safetensors, PyTorch checkpoints and big_vision's arrays."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfm_jax.weights.load import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained"]


def __getattr__(name: str) -> Any:
    # Late, so that a file can be looked at (and refused) without importing JAX.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vfm_jax.weights import load

    return getattr(load, name)
