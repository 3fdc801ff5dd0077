"""What is said of a file without computing with it is what loading then does."""

import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.weights.describe import checkpoint_table, describe, import_weights, planned
from vfm_jax.weights.hub import CHECKPOINTS
from vfm_jax.weights.load import load_pretrained, read_weights


@pytest.mark.parametrize("name", ["hf_vit_cls", "hf_resnet", "hf_clip", "hf_vitmae"])
def test_the_plan_is_the_account_of_the_load(golden_directory, name):
    with (weights := read_weights(golden_directory / "models" / name)).file:
        plan, _ = planned(weights)
    done = load_pretrained(golden_directory / "models" / name).account
    assert sorted(plan.loaded) == sorted(done.loaded)
    assert (plan.fresh, plan.unused, plan.buffers) == (done.fresh, done.unused, done.buffers)
    assert done.loaded


def test_a_file_is_described_by_network_with_sizes(golden_directory):
    rows, text = describe(golden_directory / "models" / "hf_vit_cls", names=True)
    assert [row["network"] for row in rows] == ["encoder", "head"]
    assert rows[1] == {
        "network": "head", "is": "linear_head, num_classes 5", "parameters": "245", "leaves": 2,
    }  # fmt: skip
    assert "read as hf/vit" in text
    assert "32 x 32 pixels" in text
    assert "encoder/norm/scale <- vit.layernorm.weight" in text


def test_the_table_of_checkpoints_has_a_row_for_every_name():
    rows = checkpoint_table()
    assert [row["name"] for row in rows] == list(CHECKPOINTS)
    assert all(row["from"] and row["family"] for row in rows)


def test_an_import_reads_as_the_original_and_never_overwrites(golden_directory, tmp_path):
    source = golden_directory / "models" / "timm_vit"
    account = import_weights(source, tmp_path / "ours")
    assert not account.fresh
    (before, after) = (load_pretrained(path) for path in (source, tmp_path / "ours"))
    assert after.account.family == "vfm_jax"
    assert before.preprocessing.settings == after.preprocessing.settings
    with pytest.raises(UserError, match="is there already"):
        import_weights(source, tmp_path / "ours")
