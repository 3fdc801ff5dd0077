"""An account counts, then names; what is alike takes one line."""

from vfm_jax.weights.account import SHOWN, Account, some


def test_an_account_counts_and_names_every_kind():
    account = Account("a.pth", "original/dino", "", loaded=["x", "y"], fresh=["z"], unused=["t"], buffers=["n"])
    account.resampled = {"x": "2 x 2 to 3 x 3", "y": "2 x 2 to 3 x 3"}
    account.assumed, account.notes = ["6 heads"], ["one more thing"]
    text = str(account)
    assert text.splitlines() == [
        "a.pth: read as original/dino. Licence: not known; see where the file is from.",
        "  leaves: loaded 2, fresh 1, unused 1, resampled 2",
        "  resampled x, y: 2 x 2 to 3 x 3",
        "  fresh: z",
        "  unused: t",
        "  tensors with nothing learned in them: 1",
        "  not in the file, assumed: 6 heads",
        "  one more thing",
    ]


def test_a_long_list_is_cut_and_counted_but_names_gives_all():
    account = Account("a", "b", "mit", fresh=[f"leaf_{i}" for i in range(SHOWN + 3)])
    assert "and 3 more" in str(account)
    assert "Licence: mit." in str(account)
    assert f"fresh   leaf_{SHOWN + 2}" in account.names().splitlines()
    assert some(["a", "b", "c"], 2) == "a, b and 1 more"
