"""Tables of named constructors, called with the keywords of a config dict.

The signature is the config: a field is known if the callee has a keyword of that name, and its default stands
in the signature alone.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vfm_jax.core.errors import UserError


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to `word`, or '' when none is close."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def lookup(table: Mapping[str, Any], name: Any, where: str) -> Any:
    """The entry `name` of `table`.

    Raises:
        UserError: the name is unknown; the message lists the known ones.
    """
    if name not in table:
        known = ", ".join(sorted(table)) or "none"
        raise UserError(f"Unknown name {name!r} in {where}.{nearest(str(name), table)} Known: {known}.")
    return table[name]


def keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of `function` that may be given by name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    skipped = {"self", "parent", "name"}  # the last two: fields of every Linen module, never a config's
    return {
        name: p
        for name, p in inspect.signature(function).parameters.items()
        if p.kind in named and name not in skipped
    }


def check_fields(function: Callable[..., Any], fields: Iterable[str], where: str, given: Iterable[str] = ()) -> None:
    """Refuses fields that are no keyword of `function`, and names required ones that are missing.

    Args:
        function: whose signature is the config.
        fields: names found in the config.
        where: path of the config dict, for the message ("config.objective").
        given: keywords that the program itself supplies; a config may not set them.

    Raises:
        UserError: an unknown, or a missing field.
    """
    fields, given = set(fields), set(given)
    known = {name: p for name, p in keywords(function).items() if name not in given}
    for field in sorted(fields - set(known)):
        listed = ", ".join(known) or "none"
        raise UserError(f"Unknown field {where}.{field}.{nearest(field, known)} Known there: {listed}.")
    required = [name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in fields]
    if required:
        raise UserError(f"{where} lacks {', '.join(required)}. Set {where}.{required[0]} in the recipe.")


def build(table: Mapping[str, Callable[..., Any]], spec: Mapping[str, Any], where: str, **given: Any) -> Any:
    """Calls `table[spec["name"]]` with the other fields of `spec`, and with `given`.

    Example: `build(OBJECTIVES, dict(name="mae", mask_ratio=0.75), "config.objective", encoder=encoder)`.

    Raises:
        UserError: no name, an unknown name, an unknown or a missing field; or the callee refused a value.
    """
    fields = dict(spec)
    if "name" not in fields:
        raise UserError(f"{where} has no name. Known: {', '.join(sorted(table))}.")
    name = fields.pop("name")
    function = lookup(table, name, f"{where}.name")
    check_fields(function, fields, where, given)
    return function(**fields, **given)
