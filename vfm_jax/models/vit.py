"""Vision transformer (Dosovitskiy et al., 2020, arXiv:2010.11929) and what its descendants changed."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.nn.layers import NORMS, Dense, dropout, xavier_uniform
from vfm_jax.nn.masking import gather_tokens
from vfm_jax.nn.patches import ColorEmbedding, PatchEmbedding, grid_of, patch_size_of, patchify
from vfm_jax.nn.pooling import AttentionPooling, ProbePooling, mean_pool
from vfm_jax.nn.positions import (
    SINCOS,
    RelativePositions,
    Rotation,
    places,
    relative_index,
    rope,
    rope_periods,
    sincos_at,
)
from vfm_jax.nn.resample import RULES, positions_at, resample_positions
from vfm_jax.nn.transformer import Transformer

# width, depth, mlp_dim, heads
SIZES = {
    "mu": (32, 1, 128, 2),  # for tests; big_vision
    "Ti": (192, 12, 768, 3),  # Touvron et al., 2020 (arXiv:2012.12877), Table 1
    "S": (384, 12, 1536, 6),  # the same
    "S+": (384, 12, 1536, 6),  # Siméoni et al., 2025 (arXiv:2508.10104), family of models; mlp="swiglu"
    "M": (512, 12, 2048, 8),  # big_vision
    "B": (768, 12, 3072, 12),  # Dosovitskiy et al., 2020 (arXiv:2010.11929), Table 1
    "L": (1024, 24, 4096, 16),  # the same
    "So400m": (1152, 27, 4304, 16),  # Alabdulmohsin et al., 2023 (arXiv:2305.13035), Sec. 4.2
    "H": (1280, 32, 5120, 16),  # Dosovitskiy et al., 2020, Table 1
    "H+": (1280, 32, 5120, 20),  # Siméoni et al., 2025, family of models; mlp="swiglu"
    "g": (1408, 40, 6144, 16),  # Zhai et al., 2021 (arXiv:2106.04560), Table 2
    "g-opt": (1536, 40, 6144, 16),  # Tschannen et al., SigLIP 2, 2025 (arXiv:2502.14786); big_vision
    "g-dinov2": (1536, 40, 4096, 24),  # Oquab et al., 2023 (arXiv:2304.07193), Table 17; mlp="swiglu"
    "G": (1664, 48, 8192, 16),  # Zhai et al., 2021, Table 2
    "e": (1792, 56, 15360, 16),  # Chen et al., PaLI, 2022 (arXiv:2209.06794), Table 8
    "7B": (4096, 40, 8192, 32),  # Siméoni et al., 2025, Table 2; mlp="swiglu"
    "L-aimv2": (1024, 24, 2816, 8),  # Fini et al., AIMv2, 2024 (arXiv:2411.14402), Table 1; mlp="swiglu"
    "H-aimv2": (1536, 24, 4096, 12),  # the same
    "1B-aimv2": (2048, 24, 5632, 16),  # the same
    "3B-aimv2": (3072, 24, 8192, 24),  # the same
    "0.6B-aim": (1536, 24, 6144, 12),  # El-Nouby et al., AIM, 2024 (arXiv:2401.08541), Table 1
    "1B-aim": (2048, 24, 8192, 16),  # the same
    "3B-aim": (3072, 24, 12288, 24),  # the same
    "7B-aim": (4096, 32, 16384, 32),  # the same
    "S-igpt": (512, 24, 2048, 8),  # Chen et al., Generative Pretraining from Pixels, 2020 (ICML), and their code
    "M-igpt": (1024, 36, 4096, 8),  # the same
    "L-igpt": (1536, 48, 6144, 16),  # the same
    "XL-igpt": (3072, 60, 12288, 16),  # the same, which does not tell the heads
}
CHOICES = {
    "positions": ("learned", *SINCOS, "rope", "none"),
    "position_resampling": tuple(RULES),
    "relative_positions": ("none", "block", "shared"),
    "norm_input": ("", "patches", "tokens"),
    "pooling": ("class", "mean", "attention", "class_mean", "attention_aim"),
}


class ViT(nn.Module):
    """Patches, positions, transformer, norm, pooling.

    Tokens stand in the order class, distillation, registers, patches.

    Attributes:
        variant: "SIZE/PATCH": a row of `SIZES`, and the pixels along one side of a patch.
        width: of every token; this and the next three replace the variant's where they are given.
        depth: number of blocks.
        mlp_dim: hidden width of the blocks' MLP.
        heads: attention heads.
        positions: "learned" (a table for the grid of the images first seen), fixed "sincos2d" (MAE) or
            "sincos2d_bigvision", "rope" (DINOv3: queries and keys are turned) or "none".
        class_token: prepend a learned token.
        pooling: "class" token, "mean" of the patch tokens, both ("class_mean"), or "attention" to the patch tokens by
            a learned query with an MLP ("attention_aim": without).
        norm_pooled: take the mean or the class token first and normalise it, in place of the tokens (MAE's
            fine-tuning, BEiT, CLIP).
        activation: name in `nn.layers.ACTIVATIONS`.
        layer_scale: initial value of LayerScale; None for none.
        drop_path: rate of the last block, rising linearly from zero, or the same for all: `drop_path_shape`.
        norm_epsilon: of every norm.
        levels: blocks whose outputs are returned too.
        scan: run the blocks by a scan (see `nn.transformer`).
        remat: what to recompute in the backward pass: "none", "dots" or "full".
        dtype: of matrix products; parameters, norms and softmax are float32.
        position_resampling: rule of `nn.resample.RULES` by which a learned table serves images of another grid.
        prefix_positions: how many of the first prefix tokens have learned positions too.
        distillation_token: prepend DeiT's second token.
        registers: how many register tokens (Darcet et al., 2023, arXiv:2309.16588).
        mask_token: learn a token that takes the place of patches `masked` in a call.
        patch_bias: the patch embedding has an offset.
        kernel_size: side of the stored patch kernel, where it is not the patch's (see `PatchEmbedding`).
        norm_input: normalise the "patches" (before positions: AIMv2) or the "tokens" (CLIP) before the first block.
        norm: "layer_norm" or "rms_norm", here and in the blocks.
        norm_order: "pre" or "post", in the blocks.
        final_norm: normalise the last block's output.
        class_norm: by a norm of its own for prefix tokens (DINOv3).
        local_class_norm: and by another for those of local crops in training (DINOv3 7B).
        norm_levels: the levels are normalised as the output is.
        mlp: "mlp" or "swiglu" (gated; the activation is usually "silu").
        mlp_bias: this and the next four are of the blocks; see `nn.transformer` and `nn.attention`.
        qkv_bias: queries, keys and values have an offset.
        key_bias: that of the keys counts.
        out_bias: attention's output has an offset.
        qk_norm: normalise queries and keys.
        relative_positions: "block": learned in each block (BEiT), "shared": one table for all, or "none".
        representation: width of a dense layer with tanh on the pooled vector; None for none.
        projection: width of a last dense layer without offset (CLIP); None for none.
        rope_base: base of the periods of "rope"; see `nn.positions.rope_periods`.
        rope_min_period: with the next one, in place of the base.
        rope_max_period: see there.
        rope_normalize: what coordinates are divided by: "separate", "max" or "min" side.
        rope_shift: with the next two, random changes of the coordinates in training, drawn for each example (the
            authors draw once for the batch); see `nn.positions.augment_coordinates`.
        rope_jitter: see there.
        rope_rescale: see there.
        causal: a token looks at no later one, in the order above.
        color_levels: a patch is embedded by the class of its mean colour, of so many levels of each channel between
            -1 and 1 (iGPT); 0: by a linear map of its pixels.
        init_std: kernels start from a normal distribution of this deviation; None: from Glorot's uniform one.
        levels_of: a level is the output of the "block", or of its "mlp" before it is added (data2vec 2).
        dropout: rate at which single numbers are dropped in training: behind the positions, the attention, the MLP's
            activation and the MLP, as the first ViT does.
        pooled_blocks: of how many last blocks the class tokens, each normalised, stand side by side in the pooled
            vector, shallow to deep (4: linear probes of small models by DINO and DINOv2).
    """

    variant: str = "S/16"
    width: int | None = None
    depth: int | None = None
    mlp_dim: int | None = None
    heads: int | None = None
    positions: str = "learned"
    class_token: bool = True
    pooling: str = "class"
    norm_pooled: bool = False
    activation: str = "gelu"
    layer_scale: float | None = None
    drop_path: float = 0.0
    drop_path_shape: str = "linear"
    norm_epsilon: float = 1e-6
    levels: Sequence[int] = ()
    scan: bool = False
    remat: str = "none"
    dtype: DTypeLike = jnp.float32
    position_resampling: str = "bicubic_antialias"
    prefix_positions: int = 0
    distillation_token: bool = False
    registers: int = 0
    mask_token: bool = False
    patch_bias: bool = True
    kernel_size: int | None = None
    norm_input: str = ""
    norm: str = "layer_norm"
    norm_order: str = "pre"
    final_norm: bool = True
    class_norm: bool = False
    local_class_norm: bool = False
    norm_levels: bool = False
    mlp: str = "mlp"
    mlp_bias: bool = True
    qkv_bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    qk_norm: bool = False
    relative_positions: str = "none"
    representation: int | None = None
    projection: int | None = None
    rope_base: float | None = 100.0
    rope_min_period: float | None = None
    rope_max_period: float | None = None
    rope_normalize: str = "separate"
    rope_shift: float | None = None
    rope_jitter: float | None = None
    rope_rescale: float | None = None
    causal: bool = False
    color_levels: int = 0
    init_std: float | None = None
    levels_of: str = "block"
    dropout: float = 0.0
    pooled_blocks: int = 1

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a patch."""
        return patch_size_of(self.variant)

    @property
    def masked_size(self) -> int:
        """Pixels along one side of what an entry of `masked` stands for."""
        return self.patch_size

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Width, depth, MLP width and heads."""
        row = lookup(SIZES, self.variant.partition("/")[0], "variant")
        given = (self.width, self.depth, self.mlp_dim, self.heads)
        width, depth, mlp_dim, heads = (own or default for own, default in zip(given, row, strict=True))
        return width, depth, mlp_dim, heads

    @property
    def num_prefix_tokens(self) -> int:
        """Class, distillation and register tokens."""
        return int(self.class_token) + int(self.distillation_token) + self.registers

    def _check(self) -> None:
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                listed = ", ".join(repr(name) for name in known)
                raise UserError(f"A ViT's {field} is one of {listed}; found {getattr(self, field)!r}.")
        if self.pooling in ("class", "class_mean") and not self.class_token:
            raise UserError(f'pooling "{self.pooling}" needs class_token=True; without one choose "mean".')
        if self.norm_pooled and self.pooling not in ("class", "mean"):
            raise UserError(
                "norm_pooled normalises the mean of the patches or the class token: it needs "
                f'pooling="mean" or "class", not {self.pooling!r}.'
            )
        if not 1 <= self.pooled_blocks <= self.num_levels:
            raise UserError(f"pooled_blocks is {self.pooled_blocks}; this ViT has {self.num_levels} blocks.")
        whole = "class" in self.pooling and self.final_norm and not self.norm_pooled and self.levels_of == "block"
        if self.pooled_blocks > 1 and not whole:
            raise UserError(
                'pooled_blocks takes class tokens that the last norm has normalised: it needs pooling="class" or '
                '"class_mean", final_norm=True, norm_pooled=False and levels_of="block".'
            )
        own_norms = self.class_norm or self.local_class_norm
        if own_norms and (self.norm_pooled or not self.final_norm or not self.num_prefix_tokens):
            raise UserError(
                "class_norm and local_class_norm are of prefix tokens, beside the final norm of patches: they need "
                "such tokens, final_norm=True and norm_pooled=False."
            )
        if self.prefix_positions > self.num_prefix_tokens:
            raise UserError(f"prefix_positions={self.prefix_positions}, of {self.num_prefix_tokens} prefix tokens.")

    @property
    def num_levels(self) -> int:
        """How many blocks there are to ask for by `levels`."""
        return self.sizes[1]

    @property
    def _asked(self) -> tuple[int, ...]:
        """Blocks whose outputs are needed: the levels, and those below the last that are pooled."""
        return *self.levels, *range(-self.pooled_blocks, -1)

    def setup(self) -> None:
        self._check()
        width, depth, mlp_dim, heads = self.sizes
        init = xavier_uniform if self.init_std is None else nn.initializers.normal(self.init_std)
        self.patch_embedding = (
            ColorEmbedding(width, self.patch_size, self.color_levels, dtype=self.dtype)
            if self.color_levels
            else PatchEmbedding(width, self.patch_size, init, self.dtype, self.kernel_size, self.patch_bias)
        )
        self.transformer = Transformer(
            width,
            depth,
            heads,
            mlp_dim,
            self.activation,
            self.layer_scale,
            self.drop_path,
            self.norm_epsilon,
            self.scan,
            self.remat,
            init,
            self.dtype,
            norm=self.norm,
            norm_order=self.norm_order,
            mlp_kind=self.mlp,
            mlp_bias=self.mlp_bias,
            qkv_bias=self.qkv_bias,
            key_bias=self.key_bias,
            out_bias=self.out_bias,
            qk_norm=self.qk_norm,
            relative=self.relative_positions == "block",
            drop_path_shape=self.drop_path_shape,
            causal=self.causal,
            levels_of=self.levels_of,
            dropout=self.dropout,
        )

        def norm(name: str) -> nn.Module:
            return lookup(NORMS, self.norm, "norm")(self.norm_epsilon, self.dtype, name=name)

        small = nn.initializers.normal(0.02)
        if self.norm_input:
            self.input_norm = norm("norm_input")
        if self.final_norm or self.norm_pooled:
            self.last_norm = norm("norm")
        if self.class_norm:
            self.prefix_norm = norm("class_norm")
        if self.local_class_norm:
            self.local_prefix_norm = norm("local_class_norm")
        if self.class_token:
            self.class_embedding = self.param("class_token", small, (width,), jnp.float32)
        if self.distillation_token:
            self.distillation_embedding = self.param("distillation_token", small, (width,), jnp.float32)
        if self.registers:
            self.register_embeddings = self.param("registers", small, (self.registers, width), jnp.float32)
        if self.mask_token:
            self.mask_embedding = self.param("mask_token", nn.initializers.zeros, (width,), jnp.float32)
        if self.prefix_positions:
            shape = (self.prefix_positions, width)
            self.prefix_table = self.param("prefix_positions", small, shape, jnp.float32)
        if self.relative_positions == "shared":
            self.shared_positions = RelativePositions(heads, name="relative_positions")
        if self.pooling == "attention":
            self.pool = AttentionPooling(width, heads, mlp_dim, self.activation, self.norm_epsilon, dtype=self.dtype)
        if self.pooling == "attention_aim":
            self.pool = ProbePooling(width, heads, dtype=self.dtype, key_value_bias=self.qkv_bias)
        if self.representation:
            self.representation_layer = Dense(self.representation, dtype=self.dtype, name="representation")
        if self.projection:
            self.projection_layer = Dense(self.projection, dtype=self.dtype, use_bias=False, name="projection")

    # ------------------------------------------------------------------------------------------- tokens and positions

    def _learned_positions(self, grid: tuple[int, int] | None) -> Float[Array, "gh gw d"]:
        if self.is_initializing() and not self.has_variable("params", "positions"):
            if grid is None:
                raise UserError("Initialise the ViT with images: their grid is that of the learned positions.")
            table = nn.initializers.normal(0.02)(self.make_rng("params"), (*grid, self.sizes[0]), jnp.float32)
            self.put_variable("params", "positions", table)
        return self.get_variable("params", "positions")

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "n d"] | None:
        """What is added to the patches of an image."""
        if self.positions == "learned":
            table = resample_positions(self._learned_positions(grid), grid, self.position_resampling)
            return table.reshape(-1, self.sizes[0])
        return jnp.asarray(SINCOS[self.positions](grid, self.sizes[0])) if self.positions in SINCOS else None

    def _packed_positions(self, place: Float[Array, "b n 2"], shapes: Float[Array, "b 2"]) -> Any:
        """What is added to patches at places of grids known only when the program runs."""
        if self.positions == "learned":
            return positions_at(self._learned_positions(None), shapes, place)
        quarter = self.sizes[0] / 4
        steps = {"sincos2d": quarter, "sincos2d_bigvision": quarter - 1}.get(self.positions)
        return None if steps is None else sincos_at(place, self.sizes[0], steps)

    def _rotation(self, place: Any, shape: Any, keys: jax.Array | None) -> Rotation:
        """How "rope" turns patches at places (#b n 2) of grids of a shape (#b 2)."""
        width, depth, _, heads = self.sizes
        periods = rope_periods(width // heads, self.rope_base, self.rope_min_period, self.rope_max_period)
        # a stream of its own: 0 to depth - 1 are the blocks'
        keys = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, depth))(keys)
        augmentation = (self.rope_shift, self.rope_jitter, self.rope_rescale)
        return rope(place, shape, periods, self.rope_normalize, keys, augmentation)

    def _told(
        self, grid: tuple[int, int], keep: Int[Array, "b k"] | None = None, keys: jax.Array | None = None
    ) -> dict[str, Any]:
        """What attention is told of the places of the tokens of an image."""
        told: dict[str, Any] = {}
        if self.positions == "rope":
            place = places(grid)[None] if keep is None else jnp.asarray(places(grid), jnp.float32)[keep]
            told["rope"] = self._rotation(place, np.array(grid)[None], keys)
        if self.relative_positions != "none":
            where = relative_index(grid, self.num_prefix_tokens, keep)
            told |= {"where": where} if self.relative_positions == "block" else {"bias": self.shared_positions(where)}
        return told

    def _tokens(self, patches: Any, positions: Any, masked: Any) -> Float[Array, "b n d"]:
        """The first block's input, of patches (b n p) and their positions (b n d), or None."""
        x = self.patch_embedding(patches)
        if self.norm_input == "patches":
            x = self.input_norm(x)
        if masked is not None:
            if not self.mask_token:
                raise UserError("Masked patches need a token to stand for them: mask_token=True.")
            x = jnp.where(masked[:, :, None], self.mask_embedding.astype(x.dtype)[None, None], x)
        if positions is not None:
            x = x + positions.astype(self.dtype)
        if self.num_prefix_tokens:
            prefix = self._prefix().astype(self.dtype)
            x = jnp.concatenate([jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape)), x], axis=1)
        return self.input_norm(x) if self.norm_input == "tokens" else x

    def _dropped(self, x: Float[Array, "b n d"], keys: jax.Array | None) -> Float[Array, "b n d"]:
        # a stream of its own, as the rotation's
        own = None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, self.sizes[1] + 1))(keys)
        return dropout(own, x, self.dropout)

    def _prefix(self) -> Float[Array, "n d"]:
        tokens = [self.class_embedding[None]] if self.class_token else []
        tokens += [self.distillation_embedding[None]] if self.distillation_token else []
        tokens += [self.register_embeddings] if self.registers else []
        prefix = jnp.concatenate(tokens) if len(tokens) > 1 else tokens[0]
        return prefix.at[: self.prefix_positions].add(self.prefix_table) if self.prefix_positions else prefix

    def embed(
        self,
        image: Float[Array, "b h w c"],
        keep: Int[Array, "b k"] | None = None,
        masked: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b _ d"]:
        """The first block's input."""
        patches = patchify(image, self.patch_size)  # b n p
        positions = self._positions(grid_of((image.shape[1], image.shape[2]), self.patch_size))
        if positions is not None:
            positions = jnp.broadcast_to(positions[None], (image.shape[0], *positions.shape))  # b n d
        if keep is not None:  # hidden patches are not even embedded
            patches = gather_tokens(patches, keep)
            positions = None if positions is None else gather_tokens(positions, keep)
            masked = None if masked is None else jnp.take_along_axis(masked, keep, axis=1)
        return self._tokens(patches, positions, masked)

    # --------------------------------------------------------------------------------------------------------- calls

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        valid: Bool[Array, "b k"] | None = None,
        masked: Bool[Array, "b n"] | None = None,
        mask: Bool[Array, "#b n n"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
        local: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`. Tokens, pooled and levels are float32.

        Args:
            image: normalised images.
            keep: indices of the patches to look at; None for all.
            valid: which of these are no padding: that is neither attended to nor pooled, and its tokens mean nothing.
            masked: patches (of all, not of the kept ones) that the mask token takes the place of.
            mask: True where a token (second axis) may look at another (last axis), prefix tokens among them.
            keys: one per example, for drop path and the coordinates of "rope"; needed only in training.
            train: use random drops and coordinates.
            local: the images are local crops (`local_class_norm`).

        Raises:
            ValueError: the patch size does not divide the image.
        """
        grid = grid_of((image.shape[1], image.shape[2]), self.patch_size)
        keys = keys if train else None
        x = self._dropped(self.embed(image, keep, masked), keys)
        told = self._told(grid, keep, keys)
        if valid is not None:
            told["mask"] = self._with_prefix(valid)[:, None, None, :]
        if mask is not None:
            told["mask"] = mask[:, None] & told.get("mask", True)
        x, levels = self.transformer(x, keys=keys, levels=self._asked, **told)
        return self._features(x, levels, grid, train and local, valid)

    def packed(
        self,
        patches: Float[Array, "b n p"],
        shapes: Int[Array, "b 2"],
        valid: Bool[Array, "b n"],
        *,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """Features of images of different sizes, each at its own aspect ratio, padded to one number of patches.

        Learned positions are resized to each image's grid by "bilinear_antialias". Padding is neither attended to nor
        pooled; its tokens mean nothing. The `grid` of the result is not set.

        Reference: Dehghani et al., NaViT, 2023 (arXiv:2307.06304); Tschannen et al., SigLIP 2, 2025
        (arXiv:2502.14786), Sec. 3.2 ("NaFlex").

        Args:
            patches: flattened as by `patchify`, in raster order.
            shapes: rows and columns of each image's grid.
            valid: which patches are of the image, the others being padding.
            keys: as in a call.
            train: as in a call.

        Raises:
            UserError: relative positions, whose tables are for one grid.
        """
        if self.relative_positions != "none":
            raise UserError("Images of different grids cannot share a table of relative positions.")
        keys = keys if train else None
        index = jnp.arange(patches.shape[1])[None]
        columns = shapes[:, 1:]
        place = jnp.stack([index // columns, index % columns], axis=-1)  # b n 2
        place = jnp.where(valid[:, :, None], place, 0).astype(jnp.float32)  # padding: the first patch's position
        sizes = shapes.astype(jnp.float32)
        x = self._dropped(self._tokens(patches, self._packed_positions(place, sizes), None), keys)
        told: dict[str, Any] = {"mask": self._with_prefix(valid)[:, None, None, :]}
        if self.positions == "rope":
            told["rope"] = self._rotation(place, sizes, keys)
        x, levels = self.transformer(x, keys=keys, levels=self._asked, **told)
        return self._features(x, levels, (0, 0), False, valid)

    def _normalize(self, x: Float[Array, "b n d"], local: bool) -> Float[Array, "b n d"]:
        if not self.final_norm or self.norm_pooled:
            return x
        if self.is_initializing() and self.local_class_norm:
            self.local_prefix_norm(x)  # born with the others, whatever the crops first seen are
        num = self.num_prefix_tokens
        if local and self.local_class_norm:
            return jnp.concatenate([self.local_prefix_norm(x[:, :num]), self.last_norm(x[:, num:])], axis=1)
        if self.class_norm:
            return jnp.concatenate([self.prefix_norm(x[:, :num]), self.last_norm(x[:, num:])], axis=1)
        return self.last_norm(x)

    def _features(
        self,
        x: Float[Array, "b n d"],
        levels: Sequence[Float[Array, "b n d"]],
        grid: tuple[int, int],
        local: bool,
        valid: Bool[Array, "b k"] | None = None,
    ) -> Features:
        x = self._normalize(x, local)
        levels, below = levels[: len(self.levels)], levels[len(self.levels) :]
        levels = tuple((self._normalize(level, local) if self.norm_levels else level) for level in levels)
        pooled = self._pool(x, valid)
        if below:
            tokens = [self._normalize(level, local)[:, 0].astype(pooled.dtype) for level in below]
            pooled = jnp.concatenate([*tokens, pooled], axis=1)
        if self.norm_pooled:
            pooled = self.last_norm(pooled)
        if self.representation:
            pooled = jnp.tanh(self.representation_layer(pooled))
        if self.projection:
            pooled = self.projection_layer(pooled)
        # float32: losses, statistics and evaluators sum over these
        x, pooled, *levels = (a.astype(jnp.float32) for a in (x, pooled, *levels))
        return Features(x, pooled, tuple(levels), grid, self.num_prefix_tokens)

    def _pool(self, x: Float[Array, "b n d"], valid: Bool[Array, "b k"] | None) -> Float[Array, "b _"]:
        num = self.num_prefix_tokens
        if self.pooling in ("attention", "attention_aim"):
            return self.pool(x[:, num:]) if valid is None else self.pool(x[:, num:], valid)
        if self.pooling == "class":
            return x[:, 0]
        mean = mean_pool(x[:, num:], valid)
        return mean if self.pooling == "mean" else jnp.concatenate([x[:, 0].astype(jnp.float32), mean], axis=1)

    def _with_prefix(self, valid: Bool[Array, "b k"]) -> Bool[Array, "b n"]:
        return jnp.concatenate([jnp.ones((valid.shape[0], self.num_prefix_tokens), bool), valid], axis=1)

    def attention(self, image: Float[Array, "b h w c"]) -> Float[Array, "b heads gh gw"]:
        """Attention of the pooled representation to the patches, by head.

        Of the class token in the last block, of the pooling query, of the average patch in the last block (mean
        pooling), or half and half (class and mean).
        """
        grid = grid_of((image.shape[1], image.shape[2]), self.patch_size)
        num_prefix = self.num_prefix_tokens
        x, told = self.embed(image), self._told(grid)
        if self.pooling in ("attention", "attention_aim"):
            weights = self.pool.weights(self._normalize(self.transformer(x, **told)[0], False)[:, num_prefix:])
        else:
            rows = self.transformer.last_attention(x, **told)  # b heads n n
            own, mean = rows[:, :, 0], jnp.mean(rows[:, :, num_prefix:], axis=2)
            weights = {"class": own, "mean": mean}.get(self.pooling, (own + mean) / 2)[:, :, num_prefix:]
        weights = weights.astype(jnp.float32)
        return weights.reshape(*weights.shape[:2], *grid)
