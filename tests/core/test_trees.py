"""Leaves by name, and rules that must match all of them."""

from typing import NamedTuple

import flax.struct
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import (
    check_used,
    count_parameters,
    first_match,
    flatten_dict,
    label_by_rules,
    map_named,
    named_leaves,
)


class Moments(NamedTuple):
    mu: dict
    nu: dict


class Node(flax.struct.PyTreeNode):
    step: int
    moments: Moments


TREE = {"encoder": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, "heads": [np.zeros(5), np.zeros((1, 7))]}
NAMES = ["encoder/bias", "encoder/kernel", "heads/0", "heads/1"]


def test_names_are_paths_through_dicts_and_sequences():
    assert list(named_leaves(TREE)) == NAMES
    assert named_leaves(TREE)["heads/1"].shape == (1, 7)


def test_names_are_paths_through_named_tuples_and_dataclasses():
    assert list(named_leaves(Node(4, Moments({"w": 1}, {"w": 2})))) == ["step", "moments/mu/w", "moments/nu/w"]


def test_map_named_gives_the_name_and_the_leaves_of_every_tree():
    other = map_named(lambda name, leaf: (name, leaf.size), TREE)
    assert other["encoder"]["kernel"] == ("encoder/kernel", 6)
    added = map_named(lambda name, a, b: len(name) + a + b, {"x": 1, "yy": 2}, {"x": 10, "yy": 20})
    assert added == {"x": 12, "yy": 24}


def test_the_first_matching_pattern_labels_a_leaf():
    labels = label_by_rules(TREE, ["kernel$", "^encoder", ".*"], "config.rules")
    assert named_leaves(labels) == {"encoder/bias": 1, "encoder/kernel": 0, "heads/0": 2, "heads/1": 2}
    assert first_match("encoder/bias", ["kernel", "heads"]) is None


def test_a_leaf_that_no_pattern_matches_is_named():
    with pytest.raises(UserError, match=r"config\.rules: no pattern matches heads/0, heads/1\."):
        label_by_rules(TREE, ["encoder"], "config.rules")


def test_of_many_unmatched_leaves_five_are_named_and_the_others_counted():
    with pytest.raises(UserError, match=r"l0, l1, l2, l3, l4 and 3 more\."):
        label_by_rules({f"l{i}": 0 for i in range(8)}, ["encoder"], "config.rules")


def test_none_in_a_tree_is_no_leaf_to_match():
    assert label_by_rules({"kernel": 1, "trace": None}, ["kernel"], "config.rules") == {"kernel": 0, "trace": None}


def test_a_pattern_that_matches_no_leaf_is_refused():
    check_used(["kernel", r"heads/\d"], NAMES, "config.rules")
    with pytest.raises(UserError, match=r"config\.rules: the pattern 'block_9' matches no leaf.*encoder/bias"):
        check_used(["kernel", "block_9"], NAMES, "config.rules")


def test_parameters_are_counted_as_scalars():
    assert count_parameters(TREE) == 6 + 3 + 5 + 7


def test_nested_mappings_flatten_to_dotted_keys_and_other_values_stay():
    nested = {"a": {"b": {"c": 1}, "d": (2, 3)}, "e": {}}
    assert flatten_dict(nested) == {"a.b.c": 1, "a.d": (2, 3), "e": {}}
