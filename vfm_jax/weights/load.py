"""From a file or a name to a network with its weights, with an account of every leaf."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import RULES, Rules, shardings
from vfm_jax.core.tables import build, keywords, lookup, nearest
from vfm_jax.models import MODELS
from vfm_jax.models.assembly import Assembly
from vfm_jax.weights import big_vision, convnets, native, swin, two_tower, vit_hf, vit_original, vit_timm
from vfm_jax.weights.account import Account, some
from vfm_jax.weights.adapt import adapt
from vfm_jax.weights.family import Family, Preprocessing
from vfm_jax.weights.files import WeightsFile, open_weights
from vfm_jax.weights.hub import CHECKPOINTS, resolve
from vfm_jax.weights.origin import licence_of
from vfm_jax.weights.preprocessing import Preprocess, preprocessing_of
from vfm_jax.weights.rename import rename_rules, renamed
from vfm_jax.weights.rules import Bundle, Rule, read_leaf
from vfm_jax.weights.vit import vit

Leaf = tuple[str, str]  # collection, name

MODULES = (native, vit_hf, two_tower, convnets, swin, vit_timm, vit_original, big_vision)
FAMILIES: dict[str, Family] = {family.name: family for module in MODULES for family in module.FAMILIES}
RENAMED = "a state dict renamed by your table"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file of weights, understood; its tensors are read when they are asked for.

    Attributes:
        source: the file, or the name it was asked for by.
        file: the open file.
        family: whose naming it is.
        bundle: the networks it holds.
        rules: how each leaf is made.
        preprocessing: what it expects of an image.
        licence: of the weights; "" where nobody said.
        buffers: tensors with nothing learned in them.
        others: tensors outside the networks: an optimizer's, a student's.
        unused: tensors of the networks that no rule takes.
    """

    source: str
    file: WeightsFile
    family: Family
    bundle: Bundle
    rules: Mapping[Leaf, Rule]
    preprocessing: Preprocessing
    licence: str
    buffers: Sequence[str]
    others: Sequence[str]
    unused: Sequence[str]

    def read(self, leaf: Leaf) -> np.ndarray:
        """A leaf in our layout, in the dtype of the file."""
        return read_leaf(self.rules[leaf], self.file)

    def account(self) -> Account:
        """An account of what is known before anything is loaded."""
        notes = [self.file.note] if self.file.note else []
        if self.others:
            roots = sorted({name.split("/")[0].split(".")[0] for name in self.others})
            notes.append(
                f"beside these networks the file holds {len(self.others)} other tensors ({', '.join(roots)})"
            )
        return Account(
            self.source,
            self.family.name,
            self.licence,
            unused=list(self.unused),
            buffers=list(self.buffers),
            assumed=list(self.bundle.options.get("assumed", ())),
            notes=notes,
        )


def read_weights(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    rename: Sequence[tuple[str, str]] = (),
    networks: Mapping[str, Mapping[str, Any]] | None = None,
    **given: Any,
) -> Weights:
    """Opens a file or folder of weights and understands what it holds; no tensor is read yet.

    Args:
        path: a file, a folder, or a name of `hub.CHECKPOINTS` or "hf:owner/repository".
        family: whose naming it is, where the file alone does not tell.
        rename: for a state dict of no family: (regular expression, replacement) pairs from its names to ours.
        networks: with `rename`: the networks it holds, as in a recipe.
        **given: what the file does not say: `heads` (a number, or one per network), `image_size` (of its position
            table), `activation`, `norm_epsilon`, `channels`.

    Raises:
        UserError: no such file, a damaged or malicious one, one of no known family or of several.
    """
    source = os.fspath(path)
    file = open_weights(resolve(source))
    known = CHECKPOINTS.get(source)
    licence = licence_of(source, file)
    if "image_size" in given:
        given["image_size"] = _pair(given["image_size"])
    if isinstance(given.get("heads"), Mapping):
        by_network = given.pop("heads")
        given |= {"heads" if role == "encoder" else f"{role}_heads": count for role, count in by_network.items()}
    if rename:
        return _renamed(source, file, rename, networks, given, licence)
    if known and known.family.startswith("original/"):  # an author's bare file: its name tells more than its tensors
        family = family or known.family
    chosen = _recognised(source, file, family)
    try:
        bundle = chosen.read(file.config, file.shapes, given)
        rules = {(rule.collection, rule.leaf): rule for rule in chosen.rules(bundle)}
    except UserError:
        raise
    except Exception as error:  # a reader counts on the tensors and fields of its family
        raise UserError(
            f"{source} cannot be read as {chosen.name}: {type(error).__name__} {error}. A tensor, or a field of its "
            f"config.json, is missing or not as that family has it.{'' if family is None else ' Try without family.'}"
        ) from error
    _check_heads(source, bundle, given.get("heads"))
    buffers, counts = _check_buffers(source, file, chosen, bundle)
    bundle = bundle._replace(options={**bundle.options, "counts": counts}) if counts else bundle
    used = {name for rule in rules.values() for name in rule.names}
    if missing := [name for name in used if name not in file.shapes]:
        raise UserError(
            f"{source} looks like {chosen.name}, but lacks {len(missing)} of its tensors, {missing[0]!r} first. "
            f"Is a part of it elsewhere? If it is of another family, say family=NAME: {known_families()}."
        )
    left = [name for name in file.shapes if name not in used and name not in buffers]
    wrapper = bundle.options.get("wrapper", "")
    others = [name for name in left if wrapper and not name.startswith(wrapper)]
    settings = preprocessing_of(chosen, bundle, file.config, file.preprocessor)
    if known and known.preprocessing and not (file.config or file.preprocessor):  # an author's bare file
        settings = known.preprocessing._replace(size=bundle.image_size)
    unused = [name for name in left if name not in set(others)]
    return Weights(source, file, chosen, bundle, rules, settings, licence, buffers, others, unused)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _recognised(source: str, file: WeightsFile, name: str | None) -> Family:
    if name is not None:
        if name not in FAMILIES:
            raise UserError(f"There is no family {name!r}.{nearest(name, FAMILIES)} Known: {known_families()}.")
        return FAMILIES[name]
    fitting = [family for family in FAMILIES.values() if family.matches(file.config, file.shapes)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"{source} may be {' or '.join(f.name for f in fitting)}: say which with family=NAME.")
    config = file.config or {}
    kind = config.get("model_type") or config.get("architecture")
    what = (
        f"its config.json says {kind!r}" if kind else f"its tensors are named {', '.join(list(file.shapes)[:4])}, ..."
    )
    raise UserError(
        f"{source} is of no family known here: {what}.\nKnown: {known_families()}.\n"
        "For a state dict of your own give rename=[(pattern, replacement), ...] and networks={...}, "
        "as configs/adapt/vit_cifar10.py does."
    )


def known_families() -> str:
    """The families in one line, by who named the tensors: "hf/(vit, clip), timm/(vit, ...)"."""
    origins: dict[str, list[str]] = {}
    for name in FAMILIES:
        origin, _, architecture = name.partition("/")
        origins.setdefault(origin, []).append(architecture)
    return ", ".join(
        origin + (f"/({', '.join(found)})" if all(found) else "") for origin, found in sorted(origins.items())
    )


def _check_heads(source: str, bundle: Bundle, heads: int | None) -> None:
    """Refuses a number of heads that the file contradicts: it would be silently without effect."""
    encoder = bundle.networks.get("encoder", {})
    if heads is not None and encoder.get("name") == "vit" and (told := vit(encoder).sizes[3]) != heads:
        raise UserError(
            f"{source} itself says that it has {told} attention heads; heads={heads} was given. Leave it out."
        )


def _check_buffers(
    source: str, file: WeightsFile, family: Family, bundle: Bundle
) -> tuple[list[str], dict[str, int]]:
    """Names of the buffers that the file has, and the values of counters, which an export writes again.

    Raises:
        UserError: one has another value than this model computes with.
    """
    found, counts = [], {}
    for buffer in family.buffers(bundle):
        if buffer.tensor not in file.shapes:
            continue
        found.append(buffer.tensor)
        if not file.shapes[buffer.tensor] and (count := int(file.read(buffer.tensor))):
            counts[buffer.tensor] = count
        if buffer.checked:
            value = np.asarray(file.read(buffer.tensor), np.float64)
            if value.shape != buffer.value.shape or not np.allclose(value, buffer.value, rtol=1e-2):
                raise UserError(
                    f"{source}: {buffer.tensor} is {np.array2string(value.ravel()[:4], precision=4)}..., where "
                    f"{family.name} has {np.array2string(buffer.value.ravel()[:4], precision=4)}...: another model."
                )
    return found, counts


def _renamed(
    source: str,
    file: WeightsFile,
    rename: Sequence[tuple[str, str]],
    networks: Mapping[str, Mapping[str, Any]] | None,
    given: Mapping[str, Any],
    licence: str,
) -> Weights:
    if not networks or "image_size" not in given:
        raise UserError("rename needs the file's networks and image_size: networks={...}, image_size=224.")
    bundle = Bundle(networks, given["image_size"], given.get("channels", 3))
    targets = {leaf: found.shape for leaf, found in abstract_leaves(make_model(networks), bundle).items()}
    names = renamed(file.shapes, rename)
    beside = set(Assembly.__dataclass_fields__) - set(networks)  # a network that nobody asked for stays in the file
    others = [name for name, new in names.items() if new.split("/")[0] in beside]
    wanted = {name: new for name, new in names.items() if name not in set(others)}
    rules = {(rule.collection, rule.leaf): rule for rule in rename_rules(file.shapes, wanted, targets)}
    used = {name for rule in rules.values() for name in rule.names}
    family = Family(RENAMED, lambda *_: False, lambda *_: bundle, lambda _: list(rules.values()))
    settings = preprocessing_of(family, bundle, file.config, file.preprocessor)
    left = [name for name in file.shapes if name not in used | set(others)]
    buffers = [name for name in left if name.endswith("num_batches_tracked")]
    unused = [name for name in left if name not in buffers]
    return Weights(source, file, family, bundle, rules, settings, licence, buffers, others, unused)


# --------------------------------------------------------------------------------------------------------- networks


def make_model(networks: Mapping[str, Mapping[str, Any]], dtype: str = "float32") -> nn.Module:
    """One module of the networks of a file: a two-tower model, or an `Assembly` of an encoder and its company."""
    chosen = lookup(DTYPES, dtype, "dtype")
    built = {}
    for role, spec in networks.items():
        takes = "dtype" in keywords(lookup(MODELS, spec.get("name"), f"networks.{role}.name"))
        built[role] = build(MODELS, spec, f"networks.{role}", **({"dtype": chosen} if takes else {}))
    return built["towers"] if "towers" in built else Assembly(**built)


def abstract_leaves(model: nn.Module, bundle: Bundle) -> dict[Leaf, jax.ShapeDtypeStruct]:
    """Shapes of every leaf of the model, for the bundle's images; leaves of an assembly begin with their role.

    Raises:
        UserError: the model does not take images of that size, or its fields do not fit together.
    """
    image = jax.ShapeDtypeStruct((1, *bundle.image_size, bundle.channels), jnp.float32)
    try:
        return _by_leaf(model, jax.eval_shape(functools.partial(_init, model), jax.random.key(0), image))
    except ValueError as error:
        size = " x ".join(map(str, bundle.image_size))
        raise UserError(f"These weights cannot be given images of {size} pixels. {error}") from error


def _init(model: nn.Module, key: jax.Array, image: jax.Array) -> Mapping[str, Any]:
    """Fresh variables of every network of the model."""
    if isinstance(model, Assembly):
        return model.init(key, image, method="everything")
    return model.init(key, image, jnp.zeros((1, model.text.length), jnp.int32))


def _by_leaf(model: nn.Module, variables: Mapping[str, Any]) -> dict[Leaf, Any]:
    """Variables by collection and name; the names of a two-tower model get their role before them."""
    role = "" if isinstance(model, Assembly) else "towers/"
    return {
        (collection, role + name): leaf
        for collection, tree in variables.items()
        for name, leaf in flatten_dict(tree, sep="/").items()
    }


# ----------------------------------------------------------------------------------------------------------- loading


def load_leaves(
    weights: Weights,
    targets: Mapping[Leaf, Any],
    account: Account,
    *,
    channels: str = "repeat",
    strict: bool = True,
) -> Iterator[tuple[Leaf, jax.Array]]:
    """The leaves that the file has, one at a time, each adapted to its target and put where it belongs.

    At most one leaf is in host memory at a time, beside what has been placed.

    Args:
        weights: from `read_weights`.
        targets: leaf -> shape, dtype and (where it has one) sharding.
        account: written to as leaves are loaded.
        channels: how a kernel takes other channels: "repeat", "mean" or "keep_first".
        strict: refuse leaves that the file lacks and tensors that no leaf takes; else they are in the account.

    Raises:
        UserError: strict and the leaves do not agree, or a shape that cannot be adapted.
    """
    account.fresh += [name for _, name in targets.keys() - weights.rules.keys()]
    spare = [leaf for leaf in weights.rules if leaf not in targets]
    account.unused += [
        f"{name} (for {leaf})" for collection, leaf in spare for name in weights.rules[collection, leaf].names
    ]
    account.fresh.sort()
    if strict and (account.fresh or account.unused):
        lists = (("not in the file", account.fresh), ("with no place in the network", account.unused))
        raise UserError(
            f"{account.source}, read as {account.family}, does not fill this network leaf by leaf.\n"
            + "".join(f"{len(names)} {what}: {some(names, 4)}.\n" for what, names in lists if names)
            + "If that is meant, say strict=False."
        )
    for leaf, target in targets.items():
        if leaf not in weights.rules:
            continue
        role = leaf[1].split("/")[0]
        spec = weights.bundle.networks.get(role, {})
        try:
            found = weights.read(leaf)
        except ValueError as error:
            raise UserError(f"{weights.source}, read as {weights.family.name}: {error}.") from error
        if found.shape != target.shape:
            found = found if found.dtype in (np.float32, np.float64) else found.astype(np.float32)
            found, how = adapt(leaf[1], found, target.shape, spec, channels)
            account.resampled[leaf[1]] = how
        account.loaded.append(leaf[1])
        yield leaf, put(found, target)


def put(value: np.ndarray, target: Any) -> jax.Array:
    """A host array on the devices of its target, in its dtype and by its sharding; else on the first device.

    Each device's part is cast by itself: a leaf of a bfloat16 file is never whole in float32.
    """
    sharding = getattr(target, "sharding", None)
    if sharding is not None:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: np.array(value[index], target.dtype))
    if value.dtype != target.dtype:
        return jax.device_put(value.astype(target.dtype))
    # The file's pages are not ours to keep, so they are copied; other layouts JAX copies itself, and faster.
    return jax.device_put(np.array(value) if value.flags.c_contiguous else value)


class Pretrained(NamedTuple):
    """A network with public weights.

    Attributes:
        model: `model.apply(variables, images)` gives Features (two towers: see `models.two_tower`);
            `method="logits"` class logits where the file has a classifier.
        variables: parameters under the role of each network ("encoder", "head", ...).
        preprocessing: files, Pillow images or uint8 arrays -> what the model takes.
        account: what became of every leaf; print it.
    """

    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocess
    account: Account


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    image_size: int | Sequence[int] | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
    adapt_channels: str = "repeat",
    dtype: str = "float32",
    strict: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    sharding: Rules = RULES,
    family: str | None = None,
    heads: int | Mapping[str, int] | None = None,
    rename: Sequence[tuple[str, str]] = (),
    networks: Mapping[str, Mapping[str, Any]] | None = None,
    **overrides: Any,
) -> Pretrained:
    """A network with public weights from a file, a folder or by name.

    Args:
        path: as for `read_weights`.
        image_size: pixels, one number or (height, width), where it differs from the file's: positions are resampled
            by the rule of the model's authors.
        patch_size: pixels, where it differs from the file's: the patch kernel is resampled.
        channels: of the images, where it differs from the file's.
        adapt_channels: how the first kernel takes other channels: "repeat", "mean" or "keep_first".
        dtype: of matrix products, "float32" or "bfloat16"; parameters stay float32.
        strict: refuse a file that does not fill the network exactly.
        mesh: devices to put the leaves on, by `sharding`; one device without it.
        sharding: rules (regular expression over leaf names, layout), see `core.sharding`.
        family: whose naming it is, where the file alone does not tell.
        heads: attention heads, where the file does not tell; of several networks {"encoder": 6, "decoder": 8}.
        rename: for a state dict of no family, with `networks`.
        networks: what such a state dict holds.
        **overrides: fields of the encoder ("drop_path", "levels", "pooling", ...).

    Raises:
        UserError: see `read_weights`; or an override that the encoder does not have or that needs other leaves.
    """
    given = {"heads": heads, "image_size": image_size, "channels": channels if rename else None}
    given = {k: v for k, v in given.items() if v is not None}
    weights = read_weights(path, family=family, rename=rename, networks=networks, **given)
    with weights.file:
        size = _pair(image_size) if image_size is not None else weights.bundle.image_size
        wanted = overridden(weights.bundle, patch_size, overrides)._replace(
            image_size=size, channels=channels or weights.bundle.channels
        )
        model = make_model(wanted.networks, dtype)
        targets = abstract_leaves(model, wanted)
        if mesh is not None:
            named = {f"{collection}/{leaf}": target for (collection, leaf), target in targets.items()}
            layout = shardings(named, mesh, sharding)
            targets = {
                leaf: jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=layout["/".join(leaf)])
                for leaf, target in targets.items()
            }
        account = weights.account()
        loaded = dict(load_leaves(weights, targets, account, channels=adapt_channels, strict=strict))
    if account.fresh:
        loaded |= _fresh(model, wanted, targets, loaded)
    settings = weights.preprocessing._replace(size=wanted.image_size)
    if wanted.channels != weights.bundle.channels:
        account.notes.append(f"mean and std of {wanted.channels} channels are not known: the file's are repeated")
        mean, std = (tuple(np.resize(values, wanted.channels)) for values in (settings.mean, settings.std))
        settings = settings._replace(mean=mean, std=std)
    return Pretrained(model, as_variables(loaded), Preprocess(settings), account)


def overridden(bundle: Bundle, patch_size: int | None, overrides: Mapping[str, Any]) -> Bundle:
    """The bundle with fields of its encoder (of a two-tower file: of the image tower) replaced.

    Raises:
        UserError: no such field, or a patch size for an encoder without one.
    """
    if not overrides and patch_size is None:
        return bundle
    towers = "towers" in bundle.networks
    role = "towers" if towers else "encoder"
    spec = dict(bundle.networks[role]["image"] if towers else bundle.networks[role])
    if patch_size is not None:
        if "variant" not in spec or spec["name"] != "vit":
            raise UserError(
                f"patch_size: the encoder of these weights, {spec['name']!r}, has no patches to resample."
            )
        spec["variant"] = f"{spec['variant'].partition('/')[0]}/{patch_size}"
    spec |= overrides
    return bundle._replace(
        networks={**bundle.networks, role: {**bundle.networks[role], "image": spec} if towers else spec}
    )


def _fresh(
    model: nn.Module, bundle: Bundle, targets: Mapping[Leaf, Any], loaded: Mapping[Leaf, Any]
) -> dict[Leaf, jax.Array]:
    """Initial values of the leaves that the file does not have."""
    image = jnp.zeros((1, *bundle.image_size, bundle.channels), jnp.float32)
    variables = jax.jit(functools.partial(_init, model))(jax.random.key(0), image)
    fresh = _by_leaf(model, variables)
    return {leaf: put(np.asarray(value), targets[leaf]) for leaf, value in fresh.items() if leaf not in loaded}


def as_variables(leaves: Mapping[Leaf, Any]) -> dict[str, Any]:
    """Flax variables of leaves; a two-tower model's lose their role."""
    flat = {
        (collection, *leaf.removeprefix("towers/").split("/")): value for (collection, leaf), value in leaves.items()
    }
    return unflatten_dict(flat)
