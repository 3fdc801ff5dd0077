"""Meshes in words, layouts by leaf name, arrays born on their devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import (
    AXES,
    batch_sharding,
    batch_share,
    by_examples,
    check_batch_size,
    global_batch,
    make_mesh,
    replicated,
    sharded_init,
    shardings,
    to_host,
    traced_over,
)


def _specs(shapes, mesh, *rules):
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    layout = shardings(abstract, mesh, rules) if rules else shardings(abstract, mesh)
    return {name: sharding.spec for name, sharding in layout.items()}


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 4, "tensor": 2}, (4, 1, 2)),
    ],
)
def test_minus_one_is_what_is_left_of_the_devices(words, sizes):
    mesh = make_mesh(**words)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), sizes, strict=True))


def test_a_mesh_may_be_of_some_of_the_devices():
    mesh = make_mesh(fsdp=3, devices=jax.devices()[2:5])
    assert list(mesh.devices.flat) == jax.devices()[2:5]


@pytest.mark.parametrize("words", [{"fsdp": 3}, {"data": 4}, {"data": 4, "fsdp": 4}])
def test_sizes_that_do_not_fit_the_devices_are_refused(words):
    with pytest.raises(UserError, match=r"config\.mesh is data=.*does not fit 8 devices\. Try data=-1, fsdp=1\."):
        make_mesh(**words)


@pytest.mark.parametrize("words", [{"fsdp": -1}, {"data": 0}, {"tensor": -2}])
def test_sizes_are_positive_and_one_at_most_is_free(words):
    with pytest.raises(UserError, match="sizes are positive, and at most one is -1"):
        make_mesh(**words)


def test_fsdp_splits_the_largest_dimension_that_divides():
    shapes = {"rows": (1024, 512), "columns": (512, 1024), "middle": (6, 4096, 4098), "square": (512, 512)}
    assert _specs(shapes, make_mesh(fsdp=4)) == {
        "rows": P("fsdp"),
        "columns": P(None, "fsdp"),
        "middle": P(None, "fsdp"),  # 4098 is larger and does not divide by four
        "square": P(None, "fsdp"),  # of equals the last
    }


def test_fsdp_keeps_small_and_indivisible_leaves_whole():
    shapes = {"small": (255, 256), "large": (256, 256), "odd": (513, 515), "scalar": ()}
    assert _specs(shapes, make_mesh(fsdp=4)) == {
        "small": P(),
        "large": P(None, "fsdp"),
        "odd": P(),
        "scalar": P(),
    }
    assert _specs(shapes, make_mesh(fsdp=1)) == dict.fromkeys(shapes, P())


def test_a_tuple_layout_counts_from_the_last_dimension():
    mesh = make_mesh(fsdp=2, tensor=2)
    shapes = {"mlp/kernel": (12, 16), "stacked/mlp/kernel": (3, 12, 16), "bias": (16,)}
    specs = _specs(shapes, mesh, ("kernel", ("fsdp", "tensor")), (".*", (None,)))
    assert specs == {
        "mlp/kernel": P("fsdp", "tensor"),
        "stacked/mlp/kernel": P(None, "fsdp", "tensor"),
        "bias": P(),
    }


def test_a_later_layout_splits_what_those_before_it_leave_to_a_device():
    rule = ("kernel", ("tensor", None), "fsdp")
    shapes = {
        "kernel": (256, 3, 8, 64),
        "stacked/kernel": (5, 256, 3, 8, 64),
        "wide/kernel": (4096, 64),
        "small/kernel": (8, 64),
    }
    assert _specs(shapes, make_mesh(fsdp=2, tensor=4), rule) == {
        "kernel": P("fsdp", None, "tensor"),
        "stacked/kernel": P(None, "fsdp", None, "tensor"),
        "wide/kernel": P(("tensor", "fsdp")),
        "small/kernel": P("tensor"),
    }
    assert _specs(shapes, make_mesh(fsdp=8), rule) == {  # as "fsdp" alone
        "kernel": P("fsdp"),
        "stacked/kernel": P(None, "fsdp"),
        "wide/kernel": P("fsdp"),
        "small/kernel": P(),
    }


def test_transformers_and_prototypes_are_split_over_the_tensor_axis_unasked():
    block = "encoder/transformer/block_3"
    expected = {
        f"{block}/attention/qkv/kernel": ((768, 3, 12, 64), P("fsdp", None, "tensor")),
        f"mu/{block}/attention/qkv/bias": ((3, 12, 64), P(None, "tensor")),
        f"{block}/attention/out/kernel": ((12, 64, 768), P("tensor", None, "fsdp")),
        f"{block}/attention/out/bias": ((768,), P()),
        f"{block}/mlp/up/kernel": ((768, 3072), P(None, ("tensor", "fsdp"))),
        f"{block}/mlp/up/bias": ((3072,), P("tensor")),
        f"{block}/mlp/down/kernel": ((3072, 768), P(("tensor", "fsdp"))),
        f"{block}/mlp/down/bias": ((768,), P()),
        "head/prototypes/kernel": ((256, 65536), P(None, ("tensor", "fsdp"))),
        "stage_0/block_0/attention/out/kernel": ((768, 768), P(None, "fsdp")),  # Swin
    }
    shapes = {name: shape for name, (shape, _) in expected.items()}
    found = _specs(shapes, make_mesh(data=2, fsdp=2, tensor=2))
    assert found == {name: spec for name, (_, spec) in expected.items()}
    with pytest.raises(UserError, match=r"config\.mesh\.tensor is 8,.*attention/out/kernel .*divisor of 12"):
        _specs(shapes, make_mesh(tensor=8))


def test_the_first_matching_rule_lays_out_a_leaf_and_its_optimizer_moments():
    mesh = make_mesh(tensor=2)
    specs = _specs({"kernel": (4, 6), "mu/kernel": (4, 6)}, mesh, ("kernel$", (None, "tensor")), (".*", "fsdp"))
    assert specs == dict.fromkeys(("kernel", "mu/kernel"), P(None, "tensor"))


def test_an_axis_of_length_one_is_not_split():
    """Adafactor keeps the means of a kernel's rows and columns with the kernel's axes."""
    mesh = make_mesh(fsdp=2, tensor=2)
    shapes = {"rows/kernel": (12, 1), "columns/kernel": (1, 16)}
    specs = _specs(shapes, mesh, ("kernel", ("fsdp", "tensor")))
    assert specs == {"rows/kernel": P("fsdp"), "columns/kernel": P(None, "tensor")}


def test_a_leaf_that_no_rule_matches_is_named():
    with pytest.raises(UserError, match=r"config\.sharding: no pattern matches bias"):
        _specs({"kernel": (4, 6), "bias": (6,)}, make_mesh(), ("kernel", "fsdp"))


@pytest.mark.parametrize("layout", ["tensor", (None, "model")])
def test_an_unknown_layout_is_refused(layout):
    with pytest.raises(UserError, match="neither 'fsdp' nor a tuple of"):
        _specs({"kernel": (4, 6)}, make_mesh(), (".*", layout))


def test_a_layout_that_does_not_fit_its_leaf_is_refused():
    mesh = make_mesh(tensor=4)
    with pytest.raises(UserError, match=r"more dimensions than bias \(6,\)"):
        _specs({"bias": (6,)}, mesh, (".*", (None, "tensor")))
    with pytest.raises(UserError, match=r"config\.mesh\.tensor is 4,.*dimension 1 of kernel \(4, 6\).*divisor of 6"):
        _specs({"kernel": (4, 6)}, mesh, (".*", (None, "tensor")))


@pytest.mark.usefixtures("compiled_as_by_users")
def test_a_sharded_initialisation_equals_the_plain_one_and_is_born_in_its_layout():
    mesh = make_mesh(data=2, fsdp=4)

    def create(key):
        return {"kernel": jax.random.normal(key, (256, 384), jnp.float32), "bias": jnp.arange(5.0)}

    made = sharded_init(create, ((r".*", "fsdp"),), mesh, jax.random.key(3))
    assert made["kernel"].sharding.spec == P(None, "fsdp")
    assert {shard.data.shape for shard in made["kernel"].addressable_shards} == {(256, 96)}
    assert made["bias"].sharding.is_equivalent_to(replicated(mesh), 1)
    jax.tree.map(np.testing.assert_array_equal, made, create(jax.random.key(3)))


def test_a_global_batch_has_its_rows_split_over_data_and_fsdp():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    local = {"image": np.arange(12 * 5, dtype=np.uint8).reshape(12, 5), "label": np.arange(12, dtype=np.int32)}
    batch = global_batch(local, mesh)
    for name, array in batch.items():
        assert array.sharding.is_equivalent_to(batch_sharding(mesh), array.ndim)
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {3}
        assert array.dtype == local[name].dtype
        np.testing.assert_array_equal(array, local[name])


@pytest.mark.parametrize("batch", [8, 6])
def test_rows_of_examples_are_held_where_the_batch_is(batch):
    """Where the rows do not divide, and where no mesh is known, nothing is asked for."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def channels_split(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, "fsdp")))

    def program(x):
        return jnp.tanh(by_examples(channels_split(x)))

    x = jnp.ones((batch, 4))
    known, unknown = (jax.jit(f).lower(x).as_text() for f in (traced_over(mesh, program), program))
    assert unknown.count("sharding_constraint") == 1
    assert known.count("sharding_constraint") == (2 if batch == 8 else 1)
    if batch == 8:
        assert jax.jit(traced_over(mesh, program))(x).sharding.spec == P(("data", "fsdp"))


def test_a_batch_size_that_does_not_divide_is_answered_with_the_nearest_that_do():
    mesh = make_mesh(fsdp=2, tensor=2)  # 4 ways over data and fsdp
    check_batch_size(12, mesh)
    check_batch_size(24, mesh, 3)
    with pytest.raises(UserError, match=r"batch_size is 14, which does not divide over 4 devices\. Try 12 or 16\."):
        check_batch_size(14, mesh)
    with pytest.raises(UserError, match=r"is 30,.* over 4 devices x 3 micro-batches\. Try 24 or 36\."):
        check_batch_size(30, mesh, 3)
    with pytest.raises(UserError, match=r"is 3,.*Try 4\."):
        check_batch_size(3, mesh)


def _mesh_of(processes):
    """What `batch_share` looks at of a mesh (data, fsdp, tensor): the process of each device."""
    processes = np.array(processes)
    devices = np.vectorize(lambda process: types.SimpleNamespace(process_index=process), otypes=[object])(processes)
    return types.SimpleNamespace(devices=devices, shape=dict(zip(AXES, processes.shape, strict=True)))


@pytest.mark.parametrize(
    ("processes", "shares"),
    [
        ([[[0]], [[0]], [[1]], [[1]]], [(0, 2), (1, 2)]),
        ([[[0], [0]], [[1], [1]]], [(0, 2), (1, 2)]),
        ([[[0], [1]], [[0], [1]]], [(0, 2), (1, 2)]),
        ([[[1]], [[0]], [[1]], [[0]]], [(1, 2), (0, 2)]),
        ([[[0, 1]], [[0, 1]]], [(0, 1), (0, 1)]),
        ([[[0, 0, 1, 1]], [[2, 2, 3, 3]]], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
    ids=["data", "fsdp_inside", "fsdp_across", "interleaved", "tensor_across", "tensor_across_in_pairs"],
)
def test_each_process_reads_its_share_of_a_batch(processes, shares, monkeypatch):
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert batch_share(_mesh_of(processes)) == share


def test_processes_that_share_a_part_of_their_rows_are_refused(monkeypatch):
    with pytest.raises(
        UserError, match=r"data=1, fsdp=3, tensor=2 over 3 processes, some of which would share a part"
    ):
        batch_share(_mesh_of([[[0, 0], [0, 1], [1, 2]]]))


def test_the_whole_of_a_tree_comes_to_the_host():
    mesh = make_mesh(data=-1)
    split = jax.device_put(np.arange(16.0, dtype=np.float32), batch_sharding(mesh))
    found = to_host({"a": split, "b": 3})
    np.testing.assert_array_equal(found["a"], np.arange(16.0))
    assert isinstance(found["a"], np.ndarray) and found["b"] == 3
