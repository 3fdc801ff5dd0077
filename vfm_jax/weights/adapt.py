"""A leaf of a file made to fit a network of another image size, patch size or number of channels."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.nn.resample import adapt_channels, resample_patch_kernel, resample_positions, resample_relative_positions


def adapt(
    leaf: str, value: np.ndarray, shape: tuple[int, ...], spec: Mapping[str, Any], channels: str = "repeat"
) -> tuple[np.ndarray, str]:
    """The value for a leaf of `shape`, and in words what was done to it ("" for nothing).

    Args:
        leaf: its name, which says what it is.
        value: as in the file, in our layout.
        shape: of the leaf in the network.
        spec: the network that the file describes, for its rule of resampling.
        channels: how a kernel takes other channels: "repeat", "mean" or "keep_first".

    Raises:
        UserError: the shapes differ in a way that nothing can bridge.
    """
    if value.shape == shape:
        return value, ""
    part, sides = leaf.rsplit("/", 1)[-1], (shape[0], shape[1] if len(shape) > 1 else 1)
    found, wanted = _size(value.shape), _size(shape)
    if part == "positions" and value.shape[2:] == shape[2:]:
        rule = spec.get("position_resampling", "bicubic_antialias")
        return resample_positions(value, sides, rule), f"{_size(value.shape[:2])} to {_size(shape[:2])} by {rule}"
    if part == "kernel" and value.ndim == 4 and value.shape[3] == shape[3]:
        steps = []
        if value.shape[2] != shape[2]:
            steps.append(f"{value.shape[2]} to {shape[2]} channels by {channels}")
            value = adapt_channels(value, shape[2], channels)
        if value.shape[:2] != shape[:2] and leaf.endswith("patch_embedding/kernel"):
            steps.append(f"patches of {_size(value.shape[:2])} to {_size(shape[:2])} by PI-resize")
            value = resample_patch_kernel(value, sides)
        if value.shape == shape:
            return value, ", ".join(steps)
    if leaf.endswith("relative_positions/table") and value.shape[1:] == shape[1:]:
        old, new = (_window(rows) for rows in (value.shape[0], shape[0]))
        if old and new:
            return resample_relative_positions(value, old, new), f"window {_size(old)} to {_size(new)}, bilinear"
    raise UserError(
        f"{leaf} is {found} in the file and {wanted} in the network. Use the sizes of the file, "
        "or leave this leaf out to start it fresh."
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def _window(rows: int) -> tuple[int, int] | None:
    """The square window of a table of relative positions: BEiT's with three rows for the class token, or Swin's."""
    for extra in (3, 0):
        side = int(np.sqrt(rows - extra)) if rows > extra else 0
        if side * side == rows - extra and side % 2:
            return (side + 1) // 2, (side + 1) // 2
    return None
