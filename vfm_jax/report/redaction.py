"""Takes credentials out of whatever is printed, written or uploaded.

A value is withheld when its field is named like a secret, or when it looks like one whatever its field. Many honest
fields of this trade contain "token" or "key" (`class_token`, `image_key`, `num_tokens`), so names are read word by
word, and only strings are withheld.
"""

import re
from collections.abc import Mapping
from typing import Any

WITHHELD = "(withheld)"

_ALWAYS = {
    "secret",
    "secrets",
    "password",
    "passwd",
    "passphrase",
    "credential",
    "credentials",
    "apikey",
    "authorization",
}
# The word before "token" that makes it a token of a network or of a text.
_NETWORK_TOKENS = {
    "class",
    "cls",
    "mask",
    "register",
    "pad",
    "padding",
    "patch",
    "image",
    "text",
    "start",
    "end",
    "bos",
    "eos",
    "sep",
    "prefix",
    "prompt",
}
# The word before "key" that makes it a secret; a bare `key` is far more often the name of a field in a record.
_SECRET_KEYS = {
    "api",
    "access",
    "secret",
    "private",
    "account",
    "storage",
    "auth",
    "encryption",
    "signing",
    "service",
}

_URL_USER = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@]+@")
_URL_QUERY = re.compile(
    r"(?P<name>[?&](?:[\w.-]*(?:token|signature|secret|password|credential|apikey|api_key|access_key)|sig|key)=)[^&\s#]+",
    re.IGNORECASE,
)
_LOOKS_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)|(?<=Bearer )\S+"
)


def _named_like_secret(name: str) -> bool:
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", words) if word]
    before = words[-2] if len(words) > 1 else ""
    if _ALWAYS.intersection(words):
        return True
    if words and words[-1] == "token":
        return before not in _NETWORK_TOKENS
    return bool(words) and words[-1] == "key" and before in _SECRET_KEYS


def redact_text(text: str) -> str:
    """`text` without user names and passwords in addresses, signed query fields, and well-known forms of token."""
    text = _URL_USER.sub(r"\g<scheme>", text)
    text = _URL_QUERY.sub(rf"\g<name>{WITHHELD}", text)
    return _LOOKS_SECRET.sub(WITHHELD, text)


def redact(value: Any, name: str = "") -> Any:
    """`value`, a tree of mappings and sequences, with every credential withheld; numbers and booleans are kept.

    Args:
        value: what is to be shown.
        name: of the field it stands in.
    """
    if isinstance(value, Mapping):
        if _named_like_secret(name):
            return dict.fromkeys(value, WITHHELD)
        return {key: redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if isinstance(value, str):
        return WITHHELD if value and _named_like_secret(name) else redact_text(value)
    return value
