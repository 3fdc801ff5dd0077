"""Heads on the pooled representation: projectors and classifiers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.nn.layers import Dense, xavier_uniform
from vfm_jax.nn.normalization import BatchNorm


class ProjectionHead(nn.Module):
    """SimCLR's projector: dense layers with batch norm and ReLU between; the last has batch norm without offset.

    Reference: Chen et al., 2020 (arXiv:2002.05709), Sec. 2.1 and 4.2, and `ProjectionHead` of their code.

    Attributes:
        hidden_dim: width of the hidden layers; None for the input's.
        out_dim: width of the result.
        num_layers: dense layers, the last included (2 in the paper, 3 in version 2).
    """

    hidden_dim: int | None = None
    out_dim: int = 128
    num_layers: int = 2
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b m"]:
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            width = self.out_dim if last else (self.hidden_dim or x.shape[-1])
            kernel = self.param(f"kernel_{layer}", xavier_uniform, (x.shape[-1], width), jnp.float32)
            x = x.astype(self.dtype) @ kernel.astype(self.dtype)
            norm = BatchNorm(
                self.batch_norm_momentum, self.batch_norm_epsilon, use_bias=not last, name=f"norm_{layer}"
            )
            x = norm(x, train=train)
            x = x if last else jax.nn.relu(x)
        return x.astype(jnp.float32)


class LinearHead(nn.Module):
    """Class logits from a representation.

    Attributes:
        num_classes: of the data.
        init_std: of the kernel's normal distribution; 0 starts from equal logits. (The truncation of timm's
            `trunc_normal_`, at -2 and 2, lies a hundred deviations away; Flax's, at two deviations, takes 12 %.)
        batch_norm: standardise the representation first, by batch statistics and without learned factors (MAE's
            linear probe: He et al., 2021, arXiv:2111.06377, App. A.1).
    """

    num_classes: int
    init_std: float = 0.01
    batch_norm: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b m"]:
        if self.batch_norm:
            x = BatchNorm(epsilon=1e-6, use_scale=False, use_bias=False, name="norm")(x, train=train)
        init = nn.initializers.normal(self.init_std) if self.init_std > 0 else nn.initializers.zeros
        return Dense(self.num_classes, kernel_init=init, dtype=self.dtype, name="logits")(x).astype(jnp.float32)
