"""vfm_jax: pretrain, adapt, evaluate and export vision foundation models in JAX, from one config file."""

__version__ = "0.1.0"
