"""Networks that a recipe takes whole from files of their own, and that never train: the teachers of distillation.

    networks.teacher = dict(name="pretrained", weights="dinov2_vitb14")
    networks.teacher_head = dict(name="pretrained", weights="runs/teacher/export", part="head")

`weights` is what it is in `config.init`; `part` is the network of the file that is meant, the encoder by default.
`name="pretrained"` is the network that the file describes; any other is built as written and filled.
"""

from collections.abc import Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.weights.initial import PRETRAINED, InitialWeights

FIELDS = ("weights", "part")  # of a network's dict, beside those of the network


def is_group(spec: Mapping[str, Any]) -> bool:
    """Whether a role of a recipe is several networks by name, as a method's `teachers` are."""
    return "name" not in spec and bool(spec) and all(isinstance(one, Mapping) for one in spec.values())


def described(networks: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of a recipe, with those of files that are called "pretrained" replaced by what the file holds.

    Raises:
        UserError: the file has no such network.
    """

    def one(spec: Mapping[str, Any]) -> dict[str, Any]:
        if is_group(spec):
            return {name: one(own) for name, own in spec.items()}
        if spec.get("name") != PRETRAINED or not spec.get("weights"):
            return dict(spec)
        part = _part(spec)
        own = {field: value for field, value in spec.items() if field not in FIELDS}
        found = InitialWeights(weights=spec["weights"], head="keep").networks({part: own})[part]
        return {**found, "weights": spec["weights"], "part": part}

    return {role: one(spec) for role, spec in networks.items()}


def without_files(networks: Mapping[str, Any]) -> dict[str, Any]:
    """The networks alone, as they are built."""
    return {
        role: without_files(spec) if is_group(spec) else {k: v for k, v in spec.items() if k not in FIELDS}
        for role, spec in networks.items()
    }


def has_files(networks: Mapping[str, Any]) -> bool:
    """Whether any network comes from a file of its own."""
    return any(has_files(spec) if is_group(spec) else bool(spec.get("weights")) for spec in networks.values())


def fill_frozen(extra: Mapping[str, Any], networks: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """`extra` with the frozen networks as their files have them, and the account of every leaf.

    Args:
        extra: what an objective carries, with fresh networks under "frozen" and "frozen_statistics"; what is loaded
            takes their sharding.
        networks: role -> network dict of the recipe.

    Raises:
        UserError: a network with `weights` that its method trains, or a file that does not fill it.
    """
    params, statistics = dict(extra.get("frozen", {})), dict(extra.get("frozen_statistics", {}))
    accounts = []
    for role, spec in networks.items():
        for name, own in spec.items() if is_group(spec) else ((role, spec),):
            if not own.get("weights"):
                continue
            where = f"config.networks.{role}" + (f".{name}" if name != role else "")
            if name not in params:
                raise UserError(
                    f"{where}.weights fills a network that never trains; this method trains it. Start the run from a "
                    "file with config.init.weights."
                )
            part = _part(own)
            start = InitialWeights(weights=own["weights"], head="fresh" if part == "encoder" else "keep")
            network = {k: v for k, v in own.items() if k not in FIELDS}
            loaded, moved, account = start.load({part: params[name]}, {part: statistics[name]}, {part: network})
            params[name], statistics[name] = loaded[part], moved[part]
            accounts.append(f"{where}, frozen:\n{account}")
    return {**extra, "frozen": params, "frozen_statistics": statistics}, "\n".join(accounts)


def _part(spec: Mapping[str, Any]) -> str:
    return spec.get("part") or "encoder"
