"""Public weights as the start of a training run: the trunk of any objective, and its heads where they fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import map_named, named_leaves
from vfm_jax.models.assembly import Assembly
from vfm_jax.nn.positions import SINCOS
from vfm_jax.weights.account import Account
from vfm_jax.weights.compare import completed, unequal
from vfm_jax.weights.family import Preprocessing
from vfm_jax.weights.load import Leaf, Weights, load_leaves, put, read_weights

PRETRAINED = "pretrained"  # as the name of a network: what the file holds
PRETRAINED_OPS = {"pretrained_crop", "pretrained_normalize"}  # in views: what the weights expect of an image
_ENCODER = "encoder"
_TOWERS = {  # of a two-tower file, as image-text methods call them
    "towers/image/": f"{_ENCODER}/",
    "towers/text/": "text_encoder/",
    "towers/logit_scale": "logit_scale",
    "towers/logit_bias": "logit_bias",
}


class InitialWeights:
    """Where a run starts from; the fields of `config.init`."""

    def __init__(
        self,
        *,
        weights: str,
        head: str = "fresh",
        family: str | None = None,
        heads: int | None = None,
        rename: Sequence[tuple[str, str]] = (),
        image_size: int | Sequence[int] | None = None,
        channels: str = "repeat",
        strict: bool = True,
    ):
        """Takes the recipe's words; the file is opened when it is needed.

        Args:
            weights: a file, a folder, or a name (`vfm weights list`).
            head: "fresh": the encoder alone is taken; "keep": every network of the recipe that the file has too.
            family: whose naming the file is in, where it alone does not tell.
            heads: attention heads, where the file does not tell.
            rename: (regular expression, replacement) pairs from the file's names to ours, for a file of no family.
            image_size: of the position table, where it is not square; with `rename`, of the images.
            channels: how the first kernel takes another number of channels: "repeat", "mean" or "keep_first".
            strict: refuse an encoder that the file does not fill exactly.

        Raises:
            UserError: head is neither of the two.
        """
        if head not in ("fresh", "keep"):
            raise UserError(f'config.init.head is {head!r}; expected "fresh" or "keep".')
        self._source, self._head, self._channels, self._strict = weights, head, channels, strict
        given = {"family": family, "heads": heads, "image_size": image_size}
        self._given: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self._rename = tuple((pattern, replacement) for pattern, replacement in rename)

    def networks(self, networks: Mapping[str, Any]) -> dict[str, Any]:
        """The networks of a recipe, with those called "pretrained" replaced by what the file holds.

        Raises:
            UserError: the file has no network of that role.
        """
        wanted = [role for role, spec in networks.items() if spec.get("name") == PRETRAINED]
        if not wanted:
            return dict(networks)
        if self._rename:
            raise UserError(
                f'config.networks.{wanted[0]} is "pretrained", but a renamed file does not say what it holds: '
                "write its network there."
            )
        weights = self._open({})
        weights.file.close()
        held = by_role(weights.bundle.networks)
        found = dict(networks)
        for role in wanted:
            if role not in held:
                raise UserError(
                    f'config.networks.{role} is "pretrained", but {self._source} holds {", ".join(held)}. '
                    f"Name a network there, to start it fresh."
                )
            found[role] = {**held[role], **{k: v for k, v in networks[role].items() if k != "name"}}
        return found

    def views(self, views: Mapping[str, Any]) -> dict[str, Any]:
        """The views of a recipe, with the operations that are called after the weights replaced by what they expect.

        `pretrained_crop` becomes a central crop (of another `size`, where it says so), `pretrained_normalize` the
        mean and deviation of the weights' pixels.

        Raises:
            UserError: the weights do not say what they expect, or a crop that is no square.
        """
        names = {op.get("name") for view in views.values() for part in _parts(view) for op in part.get("ops", ())}
        if not names & PRETRAINED_OPS:
            return dict(views)
        if self._rename:
            raise UserError("A renamed file does not say how its pixels are normalised: write the operation itself.")
        weights = self._open({})
        weights.file.close()
        found = weights.preprocessing

        def written_out(part: Mapping[str, Any]) -> dict[str, Any]:
            return {**part, "ops": tuple(_operation(op, found) for op in part.get("ops", ()))}

        return {
            field: written_out(view) if isinstance(view, Mapping) else tuple(map(written_out, view))
            for field, view in views.items()
        }

    def _open(self, networks: Mapping[str, Any]) -> Weights:
        roles = {_ENCODER} if self._head == "fresh" else set(Assembly.__dataclass_fields__)
        known = {role: spec for role, spec in networks.items() if role in roles}
        extra: dict[str, Any] = {"rename": self._rename, "networks": known} if self._rename else {}
        return read_weights(self._source, **self._given, **extra)

    def load(
        self, params: Any, statistics: Mapping[str, Any], networks: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any], Account]:
        """Parameters and batch statistics with the file's leaves in place of the fresh ones, and the account.

        Args:
            params: role -> tree, sharded; what is loaded takes the sharding of what it replaces.
            statistics: role -> collections, as an objective carries them; others than batch statistics are kept.
            networks: role -> network dict of the recipe.

        Raises:
            UserError: a strict load that does not fit leaf by leaf, or nothing to load.
        """
        weights = self._open(networks)
        with weights.file:
            account = weights.account()
            weights = _as_roles(weights)
            targets: dict[Leaf, Any] = {("params", name): leaf for name, leaf in named_leaves(params).items()}
            for role, collections in statistics.items():
                if isinstance(collections, Mapping) and "batch_stats" in collections:
                    named = named_leaves(collections["batch_stats"])
                    targets |= {("batch_stats", f"{role}/{name}"): leaf for name, leaf in named.items()}
            held = {leaf.split("/")[0] for _, leaf in weights.rules}
            taken = {_ENCODER} & held if self._head == "fresh" else held & {leaf.split("/")[0] for _, leaf in targets}
            if not taken:
                raise UserError(f"{self._source} holds {', '.join(sorted(held))}: nothing of this recipe's networks.")
            account.notes += self._words(weights, taken, networks)
            weights = _only(weights, taken)
            wanted = {leaf: target for leaf, target in targets.items() if leaf[1].split("/")[0] in taken}
            weights, loaded = _equal_forms(weights, wanted, networks.get(_ENCODER, {}), account)
            loaded |= load_leaves(weights, wanted, account, channels=self._channels, strict=self._strict)
        account.fresh += [name for (_, name) in targets if name.split("/")[0] not in taken]
        changed = map_named(lambda name, leaf: loaded.get(("params", name), leaf), params)
        return changed, _with_statistics(statistics, loaded), account

    def _words(self, weights: Weights, taken: set[str], networks: Mapping[str, Any]) -> list[str]:
        left = sorted({leaf.split("/")[0] for _, leaf in weights.rules} - taken)
        notes = [f'left in the file, as config.init.head is "{self._head}": {", ".join(left)}'] if left else []
        for role in sorted(taken & networks.keys()):
            theirs = weights.bundle.networks.get(role, {})
            if theirs.get("name") == networks[role].get("name"):
                differing = unequal(role, completed(networks[role]), completed(theirs))
                notes += [f"the recipe's network differs from the file's: {line} in the file" for line in differing]
        return notes


def _parts(view: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The lists of operations of one field: one, or several whose views stand after one another."""
    return (view,) if isinstance(view, Mapping) else view


def _operation(op: Mapping[str, Any], expected: Preprocessing) -> Mapping[str, Any]:
    if op.get("name") == "pretrained_normalize":
        return dict(name="normalize", mean=expected.mean, std=expected.std)
    if op.get("name") != "pretrained_crop":
        return op
    size = op.get("size", expected.size[0])
    if "size" not in op and expected.size[0] != expected.size[1]:
        raise UserError(
            f"pretrained_crop: these weights take {expected.size} pixels; say a size, as crops are square."
        )
    method = "bilinear" if expected.interpolation == "bilinear" else "bicubic"
    return dict(name="center_crop", size=size, resize_shorter=round(size / expected.crop_ratio), interpolation=method)


def by_role(networks: Mapping[str, Any]) -> dict[str, Any]:
    """Networks under the roles of objectives: the image tower of a two-tower file is an encoder."""
    if "towers" not in networks:
        return dict(networks)
    return {_ENCODER: dict(networks["towers"]["image"]), "text_encoder": dict(networks["towers"]["text"])}


def _as_roles(weights: Weights) -> Weights:
    def ours(leaf: str) -> str:
        return next((leaf.replace(own, role, 1) for own, role in _TOWERS.items() if leaf.startswith(own)), leaf)

    rules = {
        (collection, ours(leaf)): rule._replace(leaf=ours(leaf)) for (collection, leaf), rule in weights.rules.items()
    }
    bundle = weights.bundle._replace(networks=by_role(weights.bundle.networks))
    return dataclasses.replace(weights, rules=rules, bundle=bundle)


def _only(weights: Weights, roles: set[str]) -> Weights:
    kept = {leaf: rule for leaf, rule in weights.rules.items() if leaf[1].split("/")[0] in roles}
    return dataclasses.replace(weights, rules=kept)


def _equal_forms(
    weights: Weights, targets: Mapping[Leaf, Any], encoder: Mapping[str, Any], account: Account
) -> tuple[Weights, dict[Leaf, jax.Array]]:
    """What the file says with a leaf and the network without: fixed positions, and the class token's own position.

    Nothing is lost by it: a table that equals the fixed one is not needed, and a position that is always added to
    the class token may be added once.
    """
    rules, loaded = dict(weights.rules), {}
    table, prefix, token = (
        ("params", f"{_ENCODER}/{part}") for part in ("positions", "prefix_positions", "class_token")
    )
    make = SINCOS.get(encoder.get("positions", ""))
    if table in rules and table not in targets and make is not None:
        value = weights.read(table).astype(np.float32)
        if np.allclose(value.reshape(-1, value.shape[-1]), make(value.shape[:2], value.shape[2]), atol=1e-4):
            account.notes.append(f"{table[1]}: the file's table is the network's fixed {encoder['positions']}")
            account.loaded.append(table[1])
            del rules[table]
    if prefix in rules and prefix not in targets and token in targets and token in rules:
        positions = weights.read(prefix).astype(np.float32)
        if len(positions) == 1:
            summed = weights.read(token).astype(np.float32) + positions[0]
            loaded[token] = put(summed, targets[token])
            account.loaded += [token[1], prefix[1]]
            account.notes.append(f"{prefix[1]}: added to the class token, which has no position of its own here")
            del rules[prefix], rules[token]
    left = dataclasses.replace(weights, rules=rules)
    return left, loaded


def _with_statistics(statistics: Mapping[str, Any], loaded: Mapping[Leaf, jax.Array]) -> dict[str, Any]:
    changed = dict(statistics)
    for role, collections in statistics.items():
        if isinstance(collections, Mapping) and "batch_stats" in collections:
            named = map_named(
                lambda name, leaf, role=role: loaded.get(("batch_stats", f"{role}/{name}"), leaf),
                collections["batch_stats"],
            )
            changed[role] = {**collections, "batch_stats": named}
    return changed
