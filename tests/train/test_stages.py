"""Stages as overlays of one recipe, and what the next takes over from the one before."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import make_mesh, shardings
from vfm_jax.experiment import Variables
from vfm_jax.train.stages import Donor, carry_over, read_stages

RECIPE = dict(
    seed=3,
    total_epochs=10,
    objective=dict(name="mae", mask_ratio=0.75),
    networks=dict(encoder=dict(name="vit", variant="S/16"), decoder=dict(name="masked_decoder", depth=8)),
    evals=dict(knn=dict(name="knn", k=20)),
)


def _stage(**overlay):
    (stage,) = read_stages(RECIPE | dict(stages=(dict(name="next", **overlay),)))
    return stage


# -------------------------------------------------------------------------------------------------- overlays


def test_a_recipe_without_stages_is_one_called_train():
    (stage,) = read_stages(RECIPE)
    assert (stage.name, stage.carry) == ("train", (".*",))
    assert stage.recipe == RECIPE


def test_a_recipe_without_stages_may_say_what_it_carries_over():
    (stage,) = read_stages(RECIPE | dict(start_from="somewhere", carry=("encoder/",)))
    assert stage.carry == ("encoder/",)
    assert stage.recipe == RECIPE


def test_a_dict_of_another_name_replaces_the_recipes():
    stage = _stage(objective=dict(name="supervised", label_smoothing=0.1))
    assert stage.recipe["objective"] == dict(name="supervised", label_smoothing=0.1)
    assert stage.recipe["networks"] == RECIPE["networks"]


@pytest.mark.parametrize("named", [{}, {"name": "mae"}])
def test_a_dict_of_the_same_name_or_none_is_merged(named):
    stage = _stage(objective=dict(normalize_target=False, **named))
    assert stage.recipe["objective"] == dict(name="mae", mask_ratio=0.75, normalize_target=False)


def test_dicts_within_dicts_are_overlaid_one_by_one():
    encoder = dict(variant="B/16")
    head = dict(name="linear_head")
    stage = _stage(networks=dict(encoder=encoder, head=head))
    assert stage.recipe["networks"] == dict(
        encoder=dict(name="vit", variant="B/16"), decoder=RECIPE["networks"]["decoder"], head=head
    )


def test_none_removes_a_field_at_any_depth():
    stage = _stage(evals=None, networks=dict(decoder=None), objective=dict(mask_ratio=None))
    assert "evals" not in stage.recipe
    assert set(stage.recipe["networks"]) == {"encoder"}
    assert stage.recipe["objective"] == dict(name="mae")


@pytest.mark.parametrize("length", [dict(total_steps=7), dict(total_examples=900), dict(total_epochs=2)])
def test_the_length_of_a_stage_replaces_the_recipes_in_any_unit(length):
    recipe = _stage(**length).recipe
    assert {field: value for field, value in recipe.items() if field.startswith("total_")} == length


def test_each_stage_overlays_the_recipe_and_not_the_stage_before():
    stages = read_stages(
        RECIPE | dict(stages=(dict(name="a", seed=5, total_steps=3), dict(name="b", carry="encoder/")))
    )
    assert [stage.name for stage in stages] == ["a", "b"]
    assert (stages[0].recipe["seed"], stages[0].recipe["total_steps"]) == (5, 3)
    assert stages[1].carry == ("encoder/",)
    assert stages[1].recipe == RECIPE


def test_overlays_leave_the_recipe_as_it_was():
    recipe = ml_collections.ConfigDict(RECIPE)
    recipe.stages = (dict(name="next", evals=None, objective=dict(mask_ratio=0.5)),)
    before = recipe.to_json()
    (stage,) = read_stages(recipe)
    assert stage.recipe["objective"] == dict(name="mae", mask_ratio=0.5)
    assert recipe.to_json() == before


def test_two_stages_of_one_name_are_refused():
    with pytest.raises(UserError, match="two stages called 'a'; their checkpoints need different names"):
        read_stages(RECIPE | dict(stages=(dict(name="a"), dict(name="b"), dict(name="a"))))


@pytest.mark.parametrize("overlay", [{}, {"name": "../a"}, {"name": ""}, {"name": 3}])
def test_a_stage_needs_a_name_that_can_be_a_folder(overlay):
    with pytest.raises(UserError, match=r"config\.stages\[1\] has the name .*; give it one of letters, digits"):
        read_stages(RECIPE | dict(stages=(dict(name="a"), overlay)))


# ------------------------------------------------------------------------------------------------ carrying over


@pytest.fixture
def params():
    """Fresh parameters of a stage with an encoder and a head, sharded."""
    mesh = make_mesh(data=2, fsdp=4)
    tree = {
        "encoder": {"block_0": {"kernel": jnp.zeros((3, 8)), "bias": jnp.zeros(8)}, "norm": jnp.zeros(5)},
        "head": {"kernel": jnp.zeros((5, 2))},
    }
    return jax.device_put(tree, shardings(tree, mesh, (("block_0/kernel", (None, "fsdp")), (".*", (None,)))))


@pytest.fixture
def donor():
    """Parameters of the stage before, with a decoder in place of the head."""
    return {
        "encoder": {
            "block_0": {"kernel": np.arange(24.0).reshape(3, 8), "bias": np.arange(8.0)},
            "norm": np.arange(5.0),
        },
        "decoder": {"kernel": np.ones((2, 2)), "bias": np.ones(2)},
    }


def carry_params(params, given, patterns, origin):
    """The parameters alone, of a donor of another method that carries nothing."""
    given = Variables(given, {})
    variables, account = carry_over(Variables(params, {}), Donor(given, given, "mae", origin), patterns, "supervised")
    return variables.params, account


def test_leaves_of_both_are_taken_over_in_their_own_type_and_layout(params, donor):
    carried, _ = carry_params(params, donor, (".*",), "pretrain")
    for found, given, fresh in zip(
        *(jax.tree.leaves(tree["encoder"]) for tree in (carried, donor, params)), strict=True
    ):
        np.testing.assert_array_equal(found, given)
        assert (found.dtype, found.sharding) == (fresh.dtype, fresh.sharding)
    assert carried["encoder"]["block_0"]["kernel"].sharding.spec == P(None, "fsdp")
    assert carried["head"]["kernel"] is params["head"]["kernel"]


def test_patterns_choose_what_is_taken_over(params, donor):
    carried, _ = carry_params(params, donor, ("block_0/bias", "head"), "pretrain")
    np.testing.assert_array_equal(carried["encoder"]["block_0"]["bias"], np.arange(8.0))
    np.testing.assert_array_equal(carried["encoder"]["norm"], np.zeros(5))


def test_the_account_names_what_is_taken_over_fresh_and_not_used(params, donor):
    _, account = carry_params(params, donor, (".*",), "pretrain, step 40")
    assert account.splitlines() == [
        "From pretrain, step 40: 3 of 4 parameter leaves taken over.",
        "  fresh: head/kernel",
        "  not used: decoder/bias, decoder/kernel",
    ]
    _, account = carry_params(params, donor, ("norm",), "pretrain, step 40")
    assert account.splitlines() == [
        "From pretrain, step 40: 1 of 4 parameter leaves taken over.",
        "  fresh: encoder/block_0 (2), head/kernel",
        "  not used: decoder/bias, decoder/kernel, encoder/block_0 (2)",
    ]


def test_the_account_is_one_line_where_everything_is_taken_over(params):
    _, account = carry_params(params, jax.device_get(params), (".*",), "weights.npz")
    assert account == "From weights.npz: 4 of 4 parameter leaves taken over."


def test_another_shape_is_refused_with_a_way_out(params, donor):
    donor["encoder"]["norm"] = np.ones(6)
    with pytest.raises(UserError, match=r"encoder/norm has shape \(5,\) here and \(6,\) in pretrain.*leave it out"):
        carry_params(params, donor, (".*",), "pretrain")
    carry_params(params, donor, ("block_0",), "pretrain")  # that is the way out


def test_positions_are_resampled_to_the_grid_of_images_of_another_size(params, donor):
    ramp = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 4, 2))
    params["encoder"]["positions"] = jnp.zeros((8, 8, 2), jnp.float32)
    donor["encoder"]["positions"] = ramp
    carried, _ = carry_params(params, donor, (".*",), "pretrain")
    table = np.asarray(carried["encoder"]["positions"])
    assert table.shape == (8, 8, 2)
    np.testing.assert_allclose(table[2:6, 0, 0], np.arange(2, 6) / 2 - 0.25, atol=0.05)
    params["encoder"]["positions"] = jnp.zeros((8, 8, 3), jnp.float32)
    with pytest.raises(UserError, match="encoder/positions has shape"):
        carry_params(params, donor, (".*",), "pretrain")


def test_a_donor_with_nothing_to_carry_over_is_refused(params, donor):
    with pytest.raises(UserError, match=r"pretrain has none of .*It has decoder; this stage has encoder, head"):
        carry_params(params, {"decoder": donor["decoder"]}, (".*",), "pretrain")


def test_a_pattern_that_matches_nothing_here_is_refused(params, donor):
    with pytest.raises(UserError, match="the pattern 'decoder' matches no leaf"):
        carry_params(params, donor, ("encoder", "decoder"), "pretrain")


@pytest.mark.parametrize("method", ["dino", "supervised"])
def test_the_same_method_goes_on_with_its_teacher_and_another_starts_from_what_it_taught(params, method):
    student, taught = (
        {"encoder": jax.tree.map(lambda leaf, n=n: np.full(leaf.shape, n), params["encoder"])} for n in (1.0, 2.0)
    )
    carried = {"teacher": taught, "center": np.ones(3), "queue": np.ones((2, 3))}
    donor = Variables(student, carried)
    own = Variables(
        params,
        jax.device_put(
            {"teacher": {"encoder": params["encoder"]}, "center": np.zeros(3), "queue": np.zeros(5)}
            | {"anchor": params["encoder"]}
        ),
    )

    def after_load(params, extra):
        return {**extra, "teacher": {"encoder": params["encoder"]}, "anchor": params["encoder"]}

    (found, extra), _ = carry_over(own, Donor(donor, donor.result, "dino", "pretrain"), (".*",), method, after_load)
    same = method == "dino"
    assert (np.asarray(found["encoder"]["norm"]) == (1.0 if same else 2.0)).all()
    assert (np.asarray(extra["teacher"]["encoder"]["norm"]) == 2.0).all()
    assert (np.asarray(extra["anchor"]["norm"]) == 2.0).all()  # new here: what begins as a teacher is what it taught
    assert (np.asarray(extra["center"]) == 1.0).all()
    assert extra["queue"].shape == (5,)  # of another size: begun anew
