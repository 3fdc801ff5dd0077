"""Every ViT that timm knows by name: read from shapes and name alone, it is what timm builds, or it is refused."""

import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.weights.vit import vit
from vfm_jax.weights.vit_timm import FAMILIES

pytestmark = [pytest.mark.parity, pytest.mark.slow]

ACTIVATIONS = {
    "gelu": {"GELU"},
    "gelu_tanh": {"GELUTanh"},
    "quick_gelu": {"QuickGELU"},
    "silu": {"SiLU"},
    "relu": {"ReLU"},
}
KNOWN = {"Block", "EvaBlock", "Attention", "AttentionPoolLatent", "EvaAttention", "AttentionRope"}


def facts(timm, torch, name):
    """Shapes, config and what the modules compute with; nothing is allocated."""
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    modules = [(type(m).__name__, m) for m in model.modules()]
    names = {kind for kind, _ in modules}
    pool = getattr(model, "global_pool", None)
    config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "global_pool": pool if isinstance(pool, str) else None,
        "pretrained_cfg": {"input_size": list(model.pretrained_cfg["input_size"])},
    }
    computes = {
        "heads": {m.num_heads for kind, m in modules if "ttention" in kind and hasattr(m, "num_heads")},
        "epsilon": {float(m.eps) for kind, m in modules if "Norm" in kind and hasattr(m, "eps")},
        "activation": {kind for kind in names if kind in set().union(*ACTIVATIONS.values())},
        "rope": getattr(model, "rope", None) is not None,
        "known": {k for k in names if "Block" in k} | {k for k in names if "Attention" in k} <= KNOWN,
    }
    return config, {k: tuple(v.shape) for k, v in model.state_dict().items()}, computes


def test_each_is_read_as_timm_builds_it_or_refused():
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    (family,) = FAMILIES
    wrong, read = [], 0
    for name in timm.list_models(["vit_*", "deit*", "beit*", "eva*", "flexivit*", "aimv2*", "dinov*"]):
        config, shapes, computes = facts(timm, torch, name)
        if not family.matches(config, shapes):
            continue
        try:
            bundle = family.read(config, shapes, {})
            rules = family.rules(bundle)
        except UserError:
            continue
        if {tensor for rule in rules for tensor in rule.names} != set(shapes):
            continue  # refused on loading: tensors that no leaf takes, or that are missing
        model = vit(bundle.networks["encoder"])
        found = {
            "heads": {model.sizes[3]},
            "epsilon": {model.norm_epsilon},
            "activation": ACTIVATIONS[model.activation],
            "rope": model.positions == "rope",
            "known": True,
        }
        wrong += [(name, what, found[what], computes[what]) for what in found if found[what] != computes[what]]
        read += 1
    assert not wrong
    assert read > 150
