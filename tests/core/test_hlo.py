"""Programs read from the compiler's text: how often an instruction runs, and what it moves."""

import jax
import jax.numpy as jnp
import pytest

from vfm_jax.core.hlo import executed, memory_traffic, num_bytes, parse

TPU = """HloModule jit_f, is_scheduled=true

%fused (param_0.1: f32[12,4,8], param_1.1: s32[]) -> f32[1,4,8] {
  %param_0.1 = f32[12,4,8]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  ROOT %slice.1 = f32[1,4,8]{2,1,0:T(8,128)} dynamic-slice(%param_0.1, %param_1.1), dynamic_slice_sizes={1,4,8}
}

%updating (param_0.2: f32[12,4,8], param_1.2: f32[1,4,8], param_2.2: s32[]) -> f32[12,4,8] {
  %param_0.2 = f32[12,4,8]{2,1,0} parameter(0)
  %param_1.2 = f32[1,4,8]{2,1,0} parameter(1)
  %param_2.2 = s32[] parameter(2)
  ROOT %update.1 = f32[12,4,8]{2,1,0} dynamic-update-slice(%param_0.2, %param_1.2, %param_2.2)
}

%condition (p: (s32[], f32[12,4,8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(12)
  %p = (s32[]{:T(128)}, f32[12,4,8]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%body (q: (s32[], f32[12,4,8])) -> (s32[], f32[12,4,8]) {
  %q = (s32[]{:T(128)}, f32[12,4,8]{2,1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %x = f32[12,4,8]{2,1,0:T(8,128)} get-tuple-element(%q), index=1
  %layer = f32[1,4,8]{2,1,0:T(8,128)} fusion(%x, %j), kind=kLoop, calls=%fused
  %fast = f32[1,4,8]{2,1,0:T(8,128)S(1)} copy(%layer)
  %y = f32[12,4,8]{2,1,0:T(8,128)} fusion(%x, %fast, %j), kind=kLoop, calls=%updating
  ROOT %t = (s32[]{:T(128)}, f32[12,4,8]{2,1,0}) tuple(%j, %y)
}

ENTRY %main (a: f32[12,4,8]) -> f32[12,4,8] {
  %a = f32[12,4,8]{2,1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[12,4,8]{2,1,0}) tuple(%zero, %a)
  %while.1 = (s32[]{:T(128)}, f32[12,4,8]{2,1,0}) while(%start), condition=%condition, body=%body
  ROOT %b = f32[12,4,8]{2,1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""

LAYER = 4 * 8 * 4


def test_a_tpus_loop_runs_as_often_as_its_condition_says():
    times = {one.name: times for one, _, times in executed(parse(TPU))}
    assert (times["layer"], times["while.1"]) == (12, 1)


def test_a_slice_and_an_update_in_place_move_their_part_and_fast_memory_counts_on_one_side():
    number = 4  # the index, read by both fusions
    read = LAYER + LAYER + number
    copied = LAYER  # what it writes stays beside the units
    updated = LAYER + number  # its update is read from there
    compared = number + number + 1
    assert memory_traffic(parse(TPU)) == 12 * (read + copied + updated + compared)


def test_bytes_of_a_type_are_those_of_all_its_arrays():
    kind = "(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, pred[5]{0}, f32[]{:T(128)}, s4[8]{0})"
    assert num_bytes(kind) == 12 + 5 + 4 + 4
    assert num_bytes(kind, in_fast_memory=False) == 5 + 4 + 4


@pytest.mark.parametrize("unroll", [1, 4])
def test_what_a_loop_moves_does_not_depend_on_its_form(unroll):
    def run(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)[0]

    x, w = jax.ShapeDtypeStruct((64, 128), jnp.float32), jax.ShapeDtypeStruct((4, 128, 128), jnp.float32)
    program = parse(jax.jit(run).lower(x, w).compile().as_text())
    products = 4 * (64 * 128 + 128 * 128 + 64 * 128) * 4
    assert products <= memory_traffic(program) <= 3 * products


GPU = """HloModule jit_f, is_scheduled=true

%one (p.1: f32[4,8]) -> f32[4,8] {
  %p.1 = f32[4,8]{1,0} parameter(0)
  ROOT %copy.1 = f32[4,8]{1,0} copy(%p.1)
}

%other (p.2: f32[4,8]) -> f32[4,8] {
  ROOT %p.2 = f32[4,8]{1,0} parameter(0)
}

ENTRY %main (a: f32[4,8], b: f32[8,2], which: s32[]) -> f32[4,2] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,2]{1,0} parameter(1)
  %which = s32[] parameter(2)
  %chosen = f32[4,8]{1,0} conditional(%which, %a, %a), branch_computations={%one, %other}
  ROOT %product = (f32[4,2]{1,0}, s8[4194304]{0}) custom-call(%chosen, %b), custom_call_target="__cublas$lt$matmul"
}
"""


def test_a_branch_counts_by_its_share_and_what_cublas_may_use_not_at_all():
    product = 4 * (4 * 8 + 8 * 2 + 4 * 2)
    assert memory_traffic(parse(GPU)) == (2 * 4 * 4 * 8) / 2 + product
    times = {one.name: times for one, _, times in executed(parse(GPU))}
    assert times["copy.1"] == 1
