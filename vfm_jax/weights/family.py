"""A family: one naming of one architecture's weights, with the config file that goes with it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vfm_jax.weights.rules import Buffer, Bundle, Rule, Shapes

Config = Mapping[str, Any]


class Preprocessing(NamedTuple):
    """What the weights expect of an image.

    Attributes:
        size: height and width in pixels.
        mean: per channel, of pixels in [0, 1].
        std: the same.
        interpolation: "bicubic", "bilinear" or "lanczos".
        crop_ratio: side of the central crop over the side that was resized to; 1.0 crops nothing.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_ratio: float = 1.0


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Family(NamedTuple):
    """One naming of one architecture's weights.

    Attributes:
        name: "hf/dinov2", "timm/vit", "original/dinov3", "big_vision/vit".
        matches: (config, shapes) -> whether a file is of this family. The config is that of `config.json`; None for
            a file without one. Tells by what no other family has; where nothing can tell, the user must say.
        read: (config, shapes, given) -> what the file holds. `given` are the user's words where the file is silent
            (heads=6).
        rules: every leaf, for the bundle.
        buffers: tensors of the file that hold nothing learned.
        config: the `config.json` that goes with the tensors; None for a family that is only read.
        encoders: names of the networks that its encoder, or its pair of towers, may be (keys of `models.MODELS`).
        mean_std: of the pixels where the folder does not say.
    """

    name: str
    matches: Callable[[Config | None, Shapes], bool]
    read: Callable[[Config | None, Shapes, Mapping[str, Any]], Bundle]
    rules: Callable[[Bundle], Sequence[Rule]]
    buffers: Callable[[Bundle], Sequence[Buffer]] = lambda bundle: ()
    config: Callable[[Bundle], dict[str, Any]] | None = None
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    encoders: tuple[str, ...] = ("vit",)
