"""Constructors by name: the signature is the config, and what it does not know is refused."""

import flax.linen as nn
import ml_collections
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build, check_fields, keywords, lookup, nearest


def mae(encoder, *, mask_ratio, normalize_target=True):
    return encoder, mask_ratio, normalize_target


class Network(nn.Module):
    width: int = 3


TABLE = {"mae": mae, "network": Network}


def test_a_name_and_its_fields_call_the_constructor():
    assert build(TABLE, dict(name="mae", mask_ratio=0.6), "config.objective", encoder="e") == ("e", 0.6, True)


def test_a_config_dict_is_read_as_a_dict_is():
    spec = ml_collections.ConfigDict(dict(name="network", width=5))
    assert build(TABLE, spec, "config.networks.encoder").width == 5


def test_an_unknown_name_is_answered_with_the_nearest_and_all_known():
    with pytest.raises(
        UserError, match=r"'mea' in config\.objective\.name\. Did you mean 'mae'\? Known: mae, network"
    ):
        build(TABLE, dict(name="mea"), "config.objective")


def test_an_unknown_field_is_answered_with_the_nearest_and_all_known():
    with pytest.raises(
        UserError,
        match=r"Unknown field config\.objective\.mask_ration\. Did you mean 'mask_ratio'\? "
        r"Known there: mask_ratio, normalize_target\.",
    ):
        build(TABLE, dict(name="mae", mask_ration=0.5), "config.objective", encoder="e")


def test_a_missing_name_and_a_missing_required_field_are_named():
    with pytest.raises(UserError, match=r"config\.objective has no name\. Known: mae, network"):
        build(TABLE, dict(mask_ratio=0.5), "config.objective")
    with pytest.raises(UserError, match=r"config\.objective lacks mask_ratio\. Set config\.objective\.mask_ratio"):
        build(TABLE, dict(name="mae"), "config.objective", encoder="e")


def test_what_the_program_gives_cannot_be_set_from_a_config():
    with pytest.raises(UserError, match=r"Unknown field config\.objective\.encoder"):
        build(TABLE, dict(name="mae", mask_ratio=0.5, encoder="mine"), "config.objective", encoder="e")


def test_a_module_shows_its_own_fields_and_not_those_of_every_module():
    assert list(keywords(Network)) == ["width"]


@pytest.mark.parametrize("field", ["name", "parent"])
def test_fields_of_every_module_are_unknown_to_a_config(field):
    with pytest.raises(UserError, match=f"config.encoder.{field}"):
        check_fields(Network, [field], "config.encoder")


def test_a_hint_is_given_only_for_a_word_that_is_close():
    assert nearest("encodr", ["encoder", "decoder"]) == " Did you mean 'encoder'?"
    assert nearest("zzz", ["encoder", "decoder"]) == ""


def test_an_empty_table_says_that_nothing_is_known():
    with pytest.raises(UserError, match="Known: none"):
        lookup({}, "x", "config.x")
