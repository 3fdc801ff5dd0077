"""Other people's files of weights: safetensors, PyTorch's, NumPy's. Read tensor by tensor; nothing in them is run.

`open_weights` is the door. What a file is, is told by its bytes.
"""

from vfm_jax.weights.files.folder import open_weights
from vfm_jax.weights.files.interface import Tensor, WeightsFile
from vfm_jax.weights.files.safetensors import Spec, save_safetensors, save_shards

__all__ = ["Spec", "Tensor", "WeightsFile", "open_weights", "save_safetensors", "save_shards"]
