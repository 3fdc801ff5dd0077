"""Heads on a representation: projectors, prototypes and classifiers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vfm_jax.core.errors import UserError
from vfm_jax.nn.layers import Dense, LayerNorm, gelu, xavier_uniform
from vfm_jax.nn.normalization import BatchNorm

LAST_NORMS = ("scale", "plain", "none")


class ProjectionHead(nn.Module):
    """Dense layers with batch norm and ReLU between: the projectors and predictors of siamese methods.

    SimCLR's (Chen et al., 2020, arXiv:2002.05709, Sec. 2.1 and 4.2, and `ProjectionHead` of their code) is the
    default. MoCo v3 (Chen et al., 2021, arXiv:2104.02057, Sec. 4.3): hidden_dim=4096, out_dim=256, last_norm="plain",
    num_layers=3 for the projector and 2 for the predictor. SimSiam (Chen and He, 2020, arXiv:2011.10566, Sec. 3):
    last_norm="plain" for the projector; hidden_dim=512, last_norm="none", use_bias=True for the predictor. MoCo v2
    (Chen et al., 2020, arXiv:2003.04297): hidden_norm=False, last_norm="none", use_bias=True.

    Attributes:
        hidden_dim: width of the hidden layers; None for the input's.
        out_dim: width of the result.
        num_layers: dense layers, the last included (SimCLR: 2 in the paper, 3 in version 2).
        last_norm: batch norm of the result: with a factor and no offset ("scale", SimCLR), with neither ("plain",
            MoCo v3), or "none".
        unbiased: the running variance is a sample's, as PyTorch keeps it.
        hidden_norm: batch norm of the hidden layers.
        use_bias: layers that no batch norm follows have an offset. (One that batch norm follows takes it away again.)
    """

    hidden_dim: int | None = None
    out_dim: int = 128
    num_layers: int = 2
    batch_norm_momentum: float = 0.9
    batch_norm_epsilon: float = 1e-5
    last_norm: str = "scale"
    unbiased: bool = False
    hidden_norm: bool = True
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b d"], *, train: bool) -> Float[Array, "b m"]:
        if self.last_norm not in LAST_NORMS:
            raise UserError(f"last_norm is {', '.join(LAST_NORMS)}; found {self.last_norm!r}.")
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            width = self.out_dim if last else (self.hidden_dim or x.shape[-1])
            kernel = self.param(f"kernel_{layer}", xavier_uniform, (x.shape[-1], width), jnp.float32)
            x = x.astype(self.dtype) @ kernel.astype(self.dtype)
            normed = self.last_norm != "none" if last else self.hidden_norm
            if normed:
                norm = BatchNorm(
                    self.batch_norm_momentum,
                    self.batch_norm_epsilon,
                    use_scale=not last or self.last_norm == "scale",
                    use_bias=not last,
                    unbiased=self.unbiased,
                    name=f"norm_{layer}",
                )
                x = norm(x, train=train)
            elif self.use_bias:
                x = Offset(name=f"offset_{layer}")(x)
            x = x if last else jax.nn.relu(x)
        return x.astype(jnp.float32)


class Offset(nn.Module):
    """x + bias, in the dtype of x."""

    @nn.compact
    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return x + bias.astype(x.dtype)[None]


class DinoHead(nn.Module):
    """Similarities to prototypes: an MLP to a narrow unit vector, then unit directions, each times its own scale.

    The heads of DINO, iBOT and DINOv2 (Caron et al., 2021, arXiv:2104.14294, Sec. 3.1 and App. C), and of DINOv3.

    Attributes:
        out_dim: number of prototypes.
        hidden_dim: width of the MLP's hidden layers.
        bottleneck_dim: width of the unit vector.
        num_layers: dense layers up to it.
        learned_scale: the prototypes' scales are learned (DINOv2); else they are 1 (DINO's `norm_last_layer`).
        unit_prototypes: prototypes are directions and scales; else vectors of any length, a linear layer (DINOv3).
    """

    out_dim: int = 65536
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    num_layers: int = 3
    learned_scale: bool = False
    unit_prototypes: bool = True
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        widths = [self.hidden_dim] * (self.num_layers - 1) + [self.bottleneck_dim]
        init = nn.initializers.normal(0.02)
        self.layer = [Dense(width, kernel_init=init, dtype=self.dtype) for width in widths]
        if self.unit_prototypes:
            self.prototypes = Prototypes(self.out_dim, self.learned_scale, dtype=self.dtype)
        else:
            self.prototypes = Dense(self.out_dim, kernel_init=init, dtype=self.dtype, use_bias=False)

    def bottleneck(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        """The unit vector, in float32."""
        for layer in self.layer[:-1]:
            x = gelu(layer(x))
        x = self.layer[-1](x).astype(jnp.float32)
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        # A mask token that starts as zero, in an image that skips every block, is still zero here.
        length = jnp.sqrt(jnp.where(square > 0, square, 1.0))
        return x / jnp.maximum(length, 1e-12)

    def __call__(self, x: Float[Array, "*b d"], *, train: bool = False) -> Float[Array, "*b m"]:
        del train  # nothing differs
        return self.prototypes(self.bottleneck(x)).astype(jnp.float32)


class Prototypes(nn.Module):
    """x · g w/‖w‖: a linear layer whose outputs' weights have a direction and a length of their own.

    Reference: Salimans and Kingma, Weight Normalization, 2016 (arXiv:1602.07868), Eq. 2.

    Attributes:
        num_prototypes: how many outputs.
        learned_scale: g is learned; else it is 1.
        through_length: the gradient goes through ‖w‖ too, and so never changes it at first order. False is for
            weights that are set to unit length after each update (SwAV): their gradient is that of a linear layer.
    """

    num_prototypes: int
    learned_scale: bool = False
    through_length: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], *, train: bool = False) -> Float[Array, "*b m"]:
        del train  # nothing differs
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        kernel = self.param("kernel", init, (x.shape[-1], self.num_prototypes), jnp.float32)
        length = jnp.linalg.norm(kernel, axis=0)
        length = length if self.through_length else jax.lax.stop_gradient(length)
        if self.learned_scale:
            scale = self.param("scale", nn.initializers.ones, (self.num_prototypes,), jnp.float32)
        else:
            scale = jnp.ones_like(length)
        kernel = kernel * (scale / length)[None]
        return (x.astype(self.dtype) @ kernel.astype(self.dtype)).astype(jnp.float32)


class LinearHead(nn.Module):
    """Class logits from a representation.

    Attributes:
        num_classes: of the data.
        init_std: of the kernel's normal distribution; 0 starts from equal logits. (The truncation of timm's
            `trunc_normal_`, at -2 and 2, lies a hundred deviations away; Flax's, at two deviations, takes 12 %.)
        init_bias: of every logit; -log of the number of classes lets sigmoids begin with few positives.
        batch_norm: standardise the representation first, by batch statistics and without learned factors (MAE's
            linear probe: He et al., 2021, arXiv:2111.06377, App. A.1).
        layer_norm: normalise the representation first, with learned factors.
        norm_epsilon: of the layer norm.
        use_bias: the logits have an offset.
    """

    num_classes: int
    init_std: float = 0.01
    init_bias: float = 0.0
    batch_norm: bool = False
    layer_norm: bool = False
    norm_epsilon: float = 1e-5
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"], *, train: bool) -> Float[Array, "*b m"]:
        if self.batch_norm and self.layer_norm:
            raise UserError("A linear head has batch_norm or layer_norm, not both.")
        if self.layer_norm:
            x = LayerNorm(self.norm_epsilon, self.dtype, name="norm")(x)
        if self.batch_norm:
            x = BatchNorm(epsilon=1e-6, use_scale=False, use_bias=False, name="norm")(x, train=train)
        init = nn.initializers.normal(self.init_std) if self.init_std > 0 else nn.initializers.zeros
        logits = Dense(
            self.num_classes,
            kernel_init=init,
            dtype=self.dtype,
            use_bias=self.use_bias,
            bias_init=self.init_bias,
            name="logits",
        )
        return logits(x).astype(jnp.float32)
