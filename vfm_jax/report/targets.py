"""What a picture is to be learned by, drawn onto it: boxes, and the class of each pixel."""

import numpy as np
from jaxtyping import Float, Int

from vfm_jax.report.plots import class_color

_SHARE = 0.5  # of a class's colour in its pixels


def with_boxes(
    image: Float[np.ndarray, "h w 3"], boxes: Float[np.ndarray, "k 4"], labels: Int[np.ndarray, " k"]
) -> Float[np.ndarray, "h w 3"]:
    """The image with the outlines of boxes (x0 y0 x1 y1, in its pixels) in the colours of their classes."""
    out = image.copy()
    height, width = image.shape[:2]
    thick = max(1, round(max(height, width) / 128))
    for (x0, y0, x1, y1), label in zip(np.round(boxes).astype(int), labels, strict=True):
        left, right = np.clip((x0, x1), 0, width)
        top, bottom = np.clip((y0, y1), 0, height)
        inside = out[top + thick : max(top + thick, bottom - thick), left + thick : max(left + thick, right - thick)]
        kept = inside.copy()
        out[top:bottom, left:right] = class_color(int(label))
        inside[:] = kept
    return out


def with_label_map(
    image: Float[np.ndarray, "h w 3"], labels: Int[np.ndarray, "h w"], ignored: int
) -> Float[np.ndarray, "h w 3"]:
    """The image tinted by the class of each pixel; those of the class `ignored` stay as they are."""
    colors = np.array([class_color(label) for label in range(max(1, int(labels.max(initial=0)) + 1))], np.float32)
    tinted = (1 - _SHARE) * image + _SHARE * colors[np.clip(labels, 0, None)]
    return np.where(((labels == ignored) | (labels < 0))[..., None], image, tinted).astype(np.float32)
