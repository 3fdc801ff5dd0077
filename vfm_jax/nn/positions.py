"""Fixed tables of position."""

import numpy as np
from jaxtyping import Float


def sincos_2d(grid: tuple[int, int], width: int) -> Float[np.ndarray, "n d"]:
    """Sine-cosine table over a grid, in raster order.

    The first half of the channels encodes the column, the second the row; each half is [sin(x ω), cos(x ω)] with
    ω_k = 10000^(-k / (width/4)). Computed in float64, as the authors do.

    Reference: He et al., 2021 (arXiv:2111.06377), and util/pos_embed.py of their code.

    Raises:
        ValueError: the width is no multiple of four.
    """
    if width % 4:
        raise ValueError(f"sincos2d positions need a width that is a multiple of 4; found {width}.")
    omega = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    row, column = (axis.reshape(-1, 1) * omega for axis in np.indices(grid, dtype=np.float64))
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1).astype(np.float32)
