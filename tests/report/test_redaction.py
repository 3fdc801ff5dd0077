import pytest

from vfm_jax.report.redaction import WITHHELD, redact, redact_text


@pytest.mark.parametrize(
    "name",
    ["password", "hf_token", "token", "api_key", "apiKey", "aws_secret_access_key", "client-secret", "privateKey"],
)
def test_a_field_named_like_a_secret_is_withheld(name):
    assert redact({"a": [{name: "CANARY", "b": 1}]}) == {"a": [{name: WITHHELD, "b": 1}]}


@pytest.mark.parametrize(
    "name",
    [
        "class_token",
        "mask_token",
        "tokenizer",
        "num_tokens",
        "key",
        "image_key",
        "label_key",
        "keys",
        "monkey",
        "token_pooling",
    ],
)
def test_honest_fields_of_the_trade_are_shown(name):
    assert redact({name: "learned"}) == {name: "learned"}


def test_numbers_and_booleans_are_shown_whatever_their_name():
    assert redact({"token": True, "password": 3, "api_key": None}) == {"token": True, "password": 3, "api_key": None}


def test_everything_below_a_secret_name_is_withheld():
    assert redact({"credentials": {"user": "CANARY", "x": {"y": "CANARY"}}, "token": ["CANARY"]}) == {
        "credentials": {"user": WITHHELD, "x": WITHHELD},
        "token": [WITHHELD],
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:CANARY@host/data.tar", "https://host/data.tar"),
        ("s3://CANARY@bucket/x", "s3://bucket/x"),
        ("https://host/a?x=1&X-Amz-Signature=CANARY&y=2", f"https://host/a?x=1&X-Amz-Signature={WITHHELD}&y=2"),
        ("use hf_CANARYCANARYCANARY now", f"use {WITHHELD} now"),
        ("Authorization: Bearer CANARY", f"Authorization: Bearer {WITHHELD}"),
        ("photos of me@home, 3:2", "photos of me@home, 3:2"),
    ],
)
def test_secrets_inside_text_are_withheld(text, shown):
    assert redact_text(text) == shown
