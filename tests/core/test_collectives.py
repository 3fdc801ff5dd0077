"""Collectives are found in the compiler's text, with their bytes, and as often as the loops around them run."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vfm_jax.core.collectives import Collective, collectives
from vfm_jax.core.hlo import parse
from vfm_jax.core.sharding import make_mesh

PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add.clone (x.3: f32[], y.1: f32[]) -> f32[] {
  %x.3 = f32[] parameter(0)
  ROOT %add.7 = f32[] add(%x.3, %y.1)
}

%body (param: (s32[], f32[8,512])) -> (s32[], f32[8,512]) {
  %all-gather = bf16[512,512]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}, metadata={op_name="jit(f)/while/dot" stack_frame_id=10}
  %cond.1 = f32[8] conditional(%p, %q, %r), branch_computations={%rare, %never}
}

%rare (param.1: f32[8]) -> f32[8] {
  ROOT %r = (f32[16]{0}, s32[4]{0}) all-reduce(%a, %b), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add.clone, metadata={op_name="rare"}
}

%never (param.2: f32[8]) -> f32[8] {
  ROOT %n = f32[8] negate(%param.2)
}

ENTRY %main.5_spmd (param.4: f32[5,128,512], param.5: f32[8,512]) -> f32[5,128,512] {
  %while.24 = (s32[], f32[8,512]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %ag = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="start"}
  %agd = f32[8,8]{1,0} all-gather-done(%ag)
  %rs = f32[4]{0} reduce-scatter(%y), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add.clone, metadata={op_name="scatter"}
  %rss = ((f32[32]{0}), f32[4]{0}) reduce-scatter-start(%y), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add.clone, metadata={op_name="begun"}
  %rsd = f32[4]{0} reduce-scatter-done(%rss)
  %cp = (f32[10]{0}, f32[10]{0}) collective-permute-start(%z), source_target_pairs={{0,1},{1,2},{2,0}}, metadata={op_name="ring"}
  ROOT %p = pred[3]{0} all-to-all(%z), replica_groups={{0,1}}, metadata={op_name="exchange"}
}
"""  # noqa: E501


def test_each_kind_is_counted_in_whole_arrays_and_every_turn_of_a_loop():
    assert collectives(parse(PROGRAM)) == [
        Collective("all-gather", 4, "jit(f)/while/dot", 12, 12 * 512 * 512 * 2),
        Collective("all-reduce", 4, "rare", 12, 12 * (16 + 4) * 4),
        Collective("all-gather", 4, "start", 1, 8 * 8 * 4),
        Collective("reduce-scatter", 8, "scatter", 1, 4 * 8 * 4),
        Collective("reduce-scatter", 8, "begun", 1, 32 * 4),
        Collective("collective-permute", 3, "ring", 1, 10 * 4),
        Collective("all-to-all", 2, "exchange", 1, 3),
    ]


def test_a_program_of_one_device_sends_nothing():
    assert collectives(parse(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text())) == []


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_the_compilers_own_text_is_understood():
    mesh = make_mesh(data=2, fsdp=4)

    def loss(w, x):
        return jnp.mean(jnp.square(x @ w))

    w = jax.ShapeDtypeStruct((256, 64), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    x = jax.ShapeDtypeStruct((16, 256), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
    whole = NamedSharding(mesh, P())
    found = collectives(parse(jax.jit(jax.grad(loss), out_shardings=whole).lower(w, x).compile().as_text()))
    assert {one.kind for one in found} == {"all-gather", "all-reduce"}
    of_weights = 256 * 64 * 4
    assert next(one for one in found if one.kind == "all-gather").num_bytes == of_weights
    # The weights' gradient, however the groups of the mesh's axes are reduced one after another.
    assert sum(one.num_bytes for one in found if one.kind == "all-reduce") >= of_weights
