"""Whether two descriptions of a network compute the same from the same leaves."""

from collections.abc import Mapping
from typing import Any

from vfm_jax.core.tables import keywords
from vfm_jax.models import MODELS
from vfm_jax.weights.vit import vit

# Fields of a network that change nothing about what it computes from its leaves at its own image size.
_TRAINING = {"scan", "remat", "drop_path", "levels", "norm_levels", "dtype", "init_std", "zero_init", "merged_levels"}
_TRAINING |= {"norm_momentum", "unbiased_variance", "dropout", "drop_path_shape", "levels_of", "init_bias"}
_TRAINING |= {"position_resampling", "rope_shift", "rope_jitter", "rope_rescale"}

# Fields from which a network works out its sizes; several ways of writing them mean the same.
_SIZES = {"variant", "width", "depth", "depths", "widths", "heads", "block", "stem_width", "token_dim", "channel_dim"}


def completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The network dict with the defaults of its module written out, and a ViT's sizes in place of its variant."""
    defaults = {name: p.default for name, p in keywords(MODELS[spec["name"]]).items() if p.default is not p.empty}
    full: dict[str, Any] = {**defaults, **spec}
    if spec["name"] == "vit":
        model = vit(spec)
        full |= dict(zip(("width", "depth", "mlp_dim", "heads"), model.sizes, strict=True)) | {
            "variant": model.patch_size
        }
    elif hasattr(MODELS[spec["name"]], "sizes"):
        model = MODELS[spec["name"]](**{k: v for k, v in spec.items() if k != "name"})
        worked_out: dict[str, Any] = {part: getattr(model, part, None) for part in ("sizes", "patch_size")}
        worked_out |= {part.removesuffix("s"): getattr(model, part, None) for part in ("windows", "trained_windows")}
        full = {k: v for k, v in full.items() if k not in _SIZES} | worked_out
        if not any(dilation > 1 for _, dilation in getattr(model, "strides", ())):
            full.pop("dilate", None)  # nothing to dilate
    if full.get("qkv_bias") is False and "key_bias" in full:
        full["key_bias"] = True  # says nothing then
    if spec["name"] == "masked_decoder" and full.get("mlp_dim") is None:
        full["mlp_dim"] = int(full["width"] * full["mlp_ratio"])
    full.pop("mlp_ratio", None)
    if full.get("layer_scale") is not None:
        full["layer_scale"] = "yes"  # its initial value is no property of the trained model
    return {name: completed(value) if _is_network(value) else value for name, value in full.items()}


def _is_network(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("name") in MODELS


def unequal(where: str, here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """In words, the fields in which two completed networks differ; training's own settings do not count."""
    found = []
    for field in sorted({*here, *there} - _TRAINING):
        a, b = here.get(field), there.get(field)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += unequal(f"{where}.{field}", a, b)
        elif a != b and not (isinstance(a, list | tuple) and isinstance(b, list | tuple) and list(a) == list(b)):
            found.append(f"{where}: {field} is {a!r}, there {b!r}")
    return found
