"""Swin transformer, versions 1 and 2 (Liu et al., 2021, arXiv:2103.14030; 2022, arXiv:2111.09883)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Features
from vfm_jax.nn.attention import attend
from vfm_jax.nn.layers import Dense, LayerNorm, drop_path
from vfm_jax.nn.patches import PatchEmbedding, patchify
from vfm_jax.nn.resample import resample_positions
from vfm_jax.nn.transformer import Mlp, places_of_levels

# width of the first stage, depths, heads
SIZES = {
    "T": (96, (2, 2, 6, 2), (3, 6, 12, 24)),  # Liu et al., 2021, Sec. 3.3
    "S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
WINDOW_RULES = ("joint", "separate")
HIDDEN_BEHIND = -100.0  # added to the logits of pairs from different regions, as the authors do; not -inf

trunk_init = nn.initializers.normal(0.02)
stem_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's for a convolution

Pair = tuple[int, int]


def window_and_shift(grid: Pair, window: Pair, shift: Pair, rule: str) -> tuple[Pair, Pair]:
    """The window and the shift that a map of `grid` gets.

    A window that covers the map is cut to it, and there is nothing to shift. "joint": where that holds on one axis,
    both are cut to the map's shorter side and neither is shifted (the authors); "separate": each axis for itself.
    """
    if rule == "joint":
        if any(length <= side for length, side in zip(grid, window, strict=True)):
            return (min(grid), min(grid)), (0, 0)
        return window, shift
    cut = (min(grid[0], window[0]), min(grid[1], window[1]))
    moved = (0 if grid[0] <= window[0] else shift[0], 0 if grid[1] <= window[1] else shift[1])
    return cut, moved


def whole_windows(grid: Pair, window: Pair) -> Pair:
    """The map padded to a whole number of windows."""
    return -(-grid[0] // window[0]) * window[0], -(-grid[1] // window[1]) * window[1]


def relative_index(window: Pair, table_window: Pair) -> Int[np.ndarray, "n n"]:
    """Row of the table of relative offsets for each pair of tokens in a window.

    The table holds the (2 h - 1) (2 w - 1) offsets within `table_window`, in raster order; a smaller window uses the
    middle of it.
    """
    row, column = (axis.reshape(-1) for axis in np.indices(window))
    down = row[:, None] - row[None, :] + table_window[0] - 1
    right = column[:, None] - column[None, :] + table_window[1] - 1
    return down * (2 * table_window[1] - 1) + right


def region_mask(padded: Pair, window: Pair, shift: Pair) -> Bool[np.ndarray, "windows n n"]:
    """Which pairs of tokens of each window may see each other after a cyclic shift: those of one region.

    Reference: Liu et al., 2021, Sec. 3.2, Fig. 4.
    """

    def regions(length: int, side: int, step: int) -> np.ndarray:
        place = np.arange(length)
        return (place >= length - side).astype(np.int32) + (place >= length - step)

    rows, columns = (regions(*axis) for axis in zip(padded, window, shift, strict=True))
    region = 3 * rows[:, None] + columns[None, :]
    region = rearrange(region, "(gh h) (gw w) -> (gh gw) (h w)", h=window[0], w=window[1])
    return region[:, :, None] == region[:, None, :]


def partition(x: Float[Array, "b h w d"], window: Pair) -> Float[Array, "b windows n d"]:
    """Windows in raster order, and the tokens of each in raster order."""
    return rearrange(x, "b (gh h) (gw w) d -> b (gh gw) (h w) d", h=window[0], w=window[1])


def merge_windows(x: Float[Array, "b windows n d"], padded: Pair, window: Pair) -> Float[Array, "b h w d"]:
    """The inverse of `partition`."""
    return rearrange(x, "b (gh gw) (h w) d -> b (gh h) (gw w) d", gh=padded[0] // window[0], h=window[0], w=window[1])


def log_offsets(window: Pair, trained_window: Pair) -> Float[np.ndarray, "offsets 2"]:
    """Relative offsets within a window on a logarithmic scale, -1 to 1 over eight times the window.

    Reference: Liu et al., 2022, Eq. 4; the division by log 8 and the factor of 8 are of the authors' code.
    """
    axes = [
        np.arange(-(side - 1), side, dtype=np.float64) / max(trained - 1, 1) * 8
        for side, trained in zip(window, trained_window, strict=True)
    ]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    return (np.sign(offsets) * np.log2(np.abs(offsets) + 1) / np.log2(8)).astype(np.float32)


class RelativePositions(nn.Module):
    """A learned bias for each relative offset within a window, by head (Liu et al., 2021, Eq. 4)."""

    window: Pair
    heads: int

    @nn.compact
    def __call__(self, window: Pair) -> Float[Array, "heads n n"]:
        offsets = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        table = self.param("table", trunk_init, (offsets, self.heads), jnp.float32)
        return rearrange(table[relative_index(window, self.window)], "n k heads -> heads n k")


class ContinuousPositions(nn.Module):
    """The bias of an offset as a small network's function of it, so that another window needs no new parameters.

    Reference: Liu et al., 2022, Sec. 3.3; 16 sigmoid(.) bounds it, as in the authors' code.
    """

    heads: int
    trained_window: Pair | None
    hidden_dim: int = 512

    @nn.compact
    def __call__(self, window: Pair) -> Float[Array, "heads n n"]:
        offsets = jnp.asarray(log_offsets(window, self.trained_window or window))
        hidden = jax.nn.relu(Dense(self.hidden_dim, kernel_init=trunk_init, name="hidden")(offsets))
        table = Dense(self.heads, kernel_init=trunk_init, use_bias=False, name="out")(hidden)
        bias = 16 * jax.nn.sigmoid(table[relative_index(window, window)])
        return rearrange(bias, "n k heads -> heads n k")


class WindowAttention(nn.Module):
    """Self-attention within the windows of a map, with a bias by relative position.

    Version 1: softmax(q k / √d + bias) v; version 2: softmax(τ cos(q, k) + bias) v with 1/τ at least 0.01, learned by
    head.
    """

    heads: int
    window: Pair
    version: int = 1
    trained_window: Pair | None = None
    rule: str = "joint"
    qkv_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], grid: Pair, shifted: bool) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        half = (self.window[0] // 2, self.window[1] // 2)
        window, shift = window_and_shift(grid, self.window, half if shifted else (0, 0), self.rule)
        padded = whole_windows(grid, window)
        padding = ((0, 0), (0, padded[0] - grid[0]), (0, padded[1] - grid[1]), (0, 0))

        x = rearrange(x, "b (h w) d -> b h w d", h=grid[0])
        if self.rule == "joint":
            x = jnp.roll(jnp.pad(x, padding), (-shift[0], -shift[1]), axis=(1, 2))
        else:
            x = jnp.pad(jnp.roll(x, (-shift[0], -shift[1]), axis=(1, 2)), padding)

        tokens = partition(x, window)  # b windows n d
        qkv = Dense(
            (3, self.heads, width // self.heads),
            kernel_init=trunk_init,
            dtype=self.dtype,
            use_bias=self.qkv_bias,
            biased=None if self.version == 1 else (True, False, True),
            name="qkv",
        )
        # the windows are further heads: each attends to its own tokens, and an example's are one row of the batch
        query, key, value = rearrange(qkv(tokens), "b windows n qkv heads d -> qkv b n (windows heads) d")
        if self.version == 1:
            positions = RelativePositions(self.window, self.heads, name="relative_positions")
        else:
            scale = self.param("logit_scale", nn.initializers.constant(np.log(10)), (self.heads,), jnp.float32)
            scale = jnp.exp(jnp.minimum(scale, np.log(100))) * np.sqrt(width // self.heads)  # `attend` divides by √d
            scale = jnp.tile(scale, tokens.shape[1])[None, None, :, None]
            query, key = _unit(query) * scale.astype(query.dtype), _unit(key)
            positions = ContinuousPositions(self.heads, self.trained_window, name="relative_positions")
        bias = jnp.tile(positions(window), (tokens.shape[1], 1, 1))  # (windows heads) n n
        if any(shift):
            apart = np.where(region_mask(padded, window, shift), np.float32(0), np.float32(HIDDEN_BEHIND))
            bias = bias + jnp.asarray(np.repeat(apart, self.heads, axis=0))
        mixed = attend(query, key, value, bias=bias[None])
        mixed = rearrange(mixed, "b n (windows heads) d -> b windows n (heads d)", heads=self.heads)
        x = Dense(width, kernel_init=trunk_init, dtype=self.dtype, name="out")(mixed)

        x = merge_windows(x, padded, window)
        if self.rule == "joint":
            x = jnp.roll(x, shift, axis=(1, 2))[:, : grid[0], : grid[1]]
        else:
            x = jnp.roll(x[:, : grid[0], : grid[1]], shift, axis=(1, 2))
        return rearrange(x, "b h w d -> b (h w) d")


def _unit(x: jax.Array) -> jax.Array:
    # The length itself has no slope at zero, where the keys of padding are; the floor of it is PyTorch's 1e-12.
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24)).astype(x.dtype)


class SwinBlock(nn.Module):
    """Attend within windows, add; mix channels, add. Norms before (version 1), or on the branches (version 2).

    In version 2 the norms' factors start at zero, so that a block starts as the identity (the authors' code).
    """

    heads: int
    window: Pair
    mlp_dim: int
    version: int = 1
    trained_window: Pair | None = None
    rule: str = "joint"
    qkv_bias: bool = True
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], grid: Pair, shifted: bool, keys: jax.Array | None, drop_rate: float
    ) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        attention = WindowAttention(
            self.heads,
            self.window,
            self.version,
            self.trained_window,
            self.rule,
            self.qkv_bias,
            self.dtype,
            name="attention",
        )
        mlp = Mlp(width, self.mlp_dim, self.activation, kernel_init=trunk_init, dtype=self.dtype, name="mlp")
        pre = self.version == 1
        norm1, norm2 = (self._norm(name) for name in ("norm1", "norm2"))
        keys1, keys2 = (None, None) if keys is None else jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
        branch = attention(norm1(x), grid, shifted) if pre else norm1(attention(x, grid, shifted))
        x = x + drop_path(keys1, branch, drop_rate)
        return x + drop_path(keys2, mlp(norm2(x)) if pre else norm2(mlp(x)), drop_rate)

    def _norm(self, name: str) -> nn.Module:
        return LayerNorm(self.norm_epsilon, self.dtype, scale_init=1.0 if self.version == 1 else 0.0, name=name)


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens become one of the given width, with a norm before (version 1) or after (version 2)."""

    width: int
    version: int = 1
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], grid: Pair) -> tuple[Float[Array, "b m e"], Pair]:
        x = rearrange(x, "b (h w) d -> b h w d", h=grid[0])
        x = jnp.pad(x, ((0, 0), (0, grid[0] % 2), (0, grid[1] % 2), (0, 0)))
        # the authors' order of the four: down first, then right
        x = rearrange(x, "b (h down) (w right) d -> b (h w) (right down d)", down=2, right=2)
        norm = LayerNorm(self.norm_epsilon, self.dtype, name="norm")
        reduction = Dense(self.width, kernel_init=trunk_init, dtype=self.dtype, use_bias=False, name="reduction")
        x = reduction(norm(x)) if self.version == 1 else norm(reduction(x))
        return x, ((grid[0] + 1) // 2, (grid[1] + 1) // 2)


class Stage(nn.Module):
    """Patch merging (but in the first stage), then blocks of which every other one is shifted (Fig. 3)."""

    merge: bool
    width: int
    depth: int
    heads: int
    window: Pair
    mlp_dim: int
    version: int = 1
    trained_window: Pair | None = None
    rule: str = "joint"
    qkv_bias: bool = True
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    stem_norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], grid: Pair, keys: Sequence[jax.Array | None], rates: Sequence[float]
    ) -> tuple[Float[Array, "b m e"], Float[Array, "b m e"], Pair]:
        """The merged map, the last block's output, and the grid of both.

        Args:
            x: tokens in raster order.
            grid: rows and columns of x.
            keys: of each block, one per example.
            rates: of each block: share of examples that skip it.
        """
        if self.merge:
            merging = PatchMerging(self.width, self.version, self.stem_norm_epsilon, self.dtype, name="merge")
            x, grid = merging(x, grid)
        merged = x
        for i in range(self.depth):
            block = SwinBlock(
                self.heads,
                self.window,
                self.mlp_dim,
                self.version,
                self.trained_window,
                self.rule,
                self.qkv_bias,
                self.activation,
                self.norm_epsilon,
                self.dtype,
                name=f"block_{i}",
            )
            x = block(x, grid, i % 2 == 1, keys[i], rates[i])
        return merged, x, grid


class Swin(nn.Module):
    """Patches, four stages of shifted-window attention with patch merging between, norm, mean.

    Attributes:
        variant: a row of `SIZES`.
        width: of the first stage; each later one doubles it. This and the next two replace the variant's.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: side of the windows in tokens: one number, or one per stage, or (rows, columns) per stage.
        patch: pixels along one side of a patch of the stem.
        version: 1, or 2: norms on the branches, cosine attention, biases by a network of the logarithm of the offset.
        trained_window: version 2: side of the windows that the biases were trained for, as `window`; None or 0 for
            the same.
        window_rule: what a map that windows cover or do not divide gets: "joint" (the authors: see
            `window_and_shift`; the map is padded, then shifted) or "separate" (each axis for itself; shifted, then
            padded).
        mlp_ratio: hidden width of the blocks' MLP over their width.
        qkv_bias: of queries, keys and values (version 2: of queries and values).
        positions: "none", or "learned": a table added to the patches, resampled for another grid.
        mask_token: a learned token for patches that are hidden (SimMIM).
        drop_path: rate of the last block, rising linearly from zero.
        norm_epsilon: of the blocks' and the last norm.
        stem_norm_epsilon: of the norms of the stem and of patch merging.
        levels: stages whose outputs are returned too (0 the first, -1 the last), before the last norm.
        merged_levels: take these after the patch merging that follows the stage.
        dtype: of matrix products; parameters, norms and softmax are float32.
    """

    variant: str = "T"
    width: int | None = None
    depths: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    window: int | Sequence[int | Sequence[int]] = 7
    patch: int = 4
    version: int = 1
    trained_window: int | Sequence[int | Sequence[int]] | None = None
    window_rule: str = "joint"
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    activation: str = "gelu"
    positions: str = "none"
    mask_token: bool = False
    drop_path: float = 0.0
    norm_epsilon: float = 1e-5
    stem_norm_epsilon: float = 1e-5
    levels: Sequence[int] = ()
    merged_levels: bool = False
    dtype: DTypeLike = jnp.float32

    @property
    def sizes(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """Width of the first stage, depths and heads."""
        row = lookup(SIZES, self.variant, "variant")
        width = row[0] if self.width is None else self.width
        depths, heads = (self.depths or row[1]), (self.heads or row[2])
        if len(depths) != len(heads):
            raise UserError(f"depths {tuple(depths)} and heads {tuple(heads)} must be of as many stages.")
        return width, tuple(depths), tuple(heads)

    @property
    def patch_size(self) -> int:
        """Pixels along one side of a token of the last stage."""
        return self.patch * 2 ** (len(self.sizes[1]) - 1)

    @property
    def masked_size(self) -> int:
        """Pixels along one side of what an entry of `masked` stands for."""
        return self.patch

    @property
    def num_levels(self) -> int:
        """How many stages there are to ask for by `levels`."""
        return len(self.sizes[1])

    @property
    def windows(self) -> list[Pair]:
        """Rows and columns of each stage's windows."""
        return self._by_stage(self.window, "window")

    @property
    def trained_windows(self) -> list[Pair | None]:
        """Of the windows that each stage's biases were trained for; None for its own."""
        return [side if all(side) else None for side in self._by_stage(self.trained_window or 0, "trained_window")]

    def _by_stage(self, given: int | Sequence[int | Sequence[int]], field: str) -> list[Pair]:
        stages = len(self.sizes[1])
        sides = [given] * stages if isinstance(given, int) else list(given)
        if len(sides) != stages:
            raise UserError(f"{field} {given} must be one number, or one per stage of {stages}.")
        return [(side, side) if isinstance(side, int) else (side[0], side[1]) for side in sides]

    def setup(self) -> None:
        width, depths, heads = self.sizes
        if self.version not in (1, 2) or self.window_rule not in WINDOW_RULES:
            raise UserError(
                f"A Swin has version 1 or 2 and window_rule {' or '.join(WINDOW_RULES)}; found {self.version!r} and "
                f"{self.window_rule!r}."
            )
        if self.positions not in ("none", "learned"):
            raise UserError(f"A Swin has positions none or learned; found {self.positions!r}.")
        windows, trained = self.windows, self.trained_windows
        self.patch_embedding = PatchEmbedding(width, self.patch, kernel_init=stem_init, dtype=self.dtype)
        self.norm_patches = LayerNorm(self.stem_norm_epsilon, self.dtype)
        if self.mask_token:
            self.mask_embedding = self.param("mask_token", nn.initializers.normal(0.02), (width,), jnp.float32)
        stages = []
        for i, (depth, num_heads) in enumerate(zip(depths, heads, strict=True)):
            stage_width = width * 2**i
            if stage_width % num_heads:
                raise UserError(f"Stage {i}'s width of {stage_width} does not divide into {num_heads} heads.")
            stages.append(
                Stage(
                    i > 0,
                    stage_width,
                    depth,
                    num_heads,
                    windows[i],
                    int(stage_width * self.mlp_ratio),
                    self.version,
                    trained[i],
                    self.window_rule,
                    self.qkv_bias,
                    self.activation,
                    self.norm_epsilon,
                    self.stem_norm_epsilon,
                    self.dtype,
                    name=f"stage_{i}",
                )
            )
        self.stages = stages
        self.norm = LayerNorm(self.norm_epsilon, self.dtype)

    def embed(
        self, image: Float[Array, "b h w c"], masked: Bool[Array, "b n"] | None = None
    ) -> tuple[Float[Array, "b n d"], Pair]:
        """Normalised patches with their positions, and the grid they form; images are padded to whole patches."""
        height, width = image.shape[1], image.shape[2]
        image = jnp.pad(image, ((0, 0), (0, -height % self.patch), (0, -width % self.patch), (0, 0)))
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        x = self.norm_patches(self.patch_embedding(patchify(image, self.patch)))
        if masked is not None:
            if not self.mask_token:
                raise UserError("This Swin has no mask token to put in place of masked patches; set mask_token=True.")
            x = jnp.where(masked[:, :, None], self.mask_embedding[None, None].astype(x.dtype), x)
        if self.positions == "learned":
            if self.is_initializing() and not self.has_variable("params", "positions"):
                table = nn.initializers.normal(0.02)(self.make_rng("params"), (*grid, x.shape[-1]), jnp.float32)
                self.put_variable("params", "positions", table)
            table = resample_positions(self.get_variable("params", "positions"), grid, "bicubic")
            x = x + table.reshape(1, -1, x.shape[-1]).astype(x.dtype)
        return x, grid

    def __call__(
        self,
        image: Float[Array, "b h w c"],
        *,
        keep: Int[Array, "b k"] | None = None,
        masked: Bool[Array, "b n"] | None = None,
        keys: jax.Array | None = None,
        train: bool = False,
    ) -> Features:
        """See `models.interface.Encoder`. `masked` patches of the stem are replaced by the mask token.

        Raises:
            UserError: `keep` is given: windows need all patches.
        """
        if keep is not None:
            raise UserError(
                "A Swin cannot look at some patches only: its windows need all. Mask patches by `masked` "
                "(mask_token=True), or use a ViT."
            )
        depths = self.sizes[1]
        rates = np.linspace(0, self.drop_path, sum(depths)).tolist()
        keys = keys if train and self.drop_path > 0 else None
        streams = [
            None if keys is None else jax.vmap(lambda key, at=i: jax.random.fold_in(key, at))(keys)
            for i in range(sum(depths))
        ]
        x, grid = self.embed(image, masked)
        outputs, grids = [], []
        for i, stage in enumerate(self.stages):
            blocks = slice(sum(depths[:i]), sum(depths[: i + 1]))
            merged, x, grid = stage(x, grid, streams[blocks], rates[blocks])
            if self.merged_levels and i > 0:
                outputs[-1], grids[-1] = merged, grid
            outputs.append(x)
            grids.append(grid)
        x = self.norm(x).astype(jnp.float32)
        wanted = places_of_levels(self.levels, len(depths), "stages")
        levels = tuple(outputs[place].astype(jnp.float32) for place in wanted)
        pooled = jnp.mean(x, axis=1)
        return Features(x, pooled, levels, grid, level_grids=tuple(grids[place] for place in wanted))
