"""Other people's weights, in and out: safetensors, PyTorch checkpoints and big_vision's arrays."""

from vfm_jax.weights.load import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained"]
