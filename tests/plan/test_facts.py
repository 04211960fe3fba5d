"""The facts of a step's program are found where they are, and only there."""

import pytest

from jaxpeft.plan import program_text
from jaxpeft.plan.facts import facts, which

# A loop over two layers that reads a filled constant, copies its stack of weights each
# turn, has scores of 32 x 32, and logits of 4 rows.
TEXT = """HloModule m, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%fill (n: bf16[]) -> bf16[64,32] {
  %n = bf16[] constant(3)
  ROOT %filled = bf16[64,32] broadcast(%n), dimensions={}
}

%move (p: bf16[2,32,16]) -> bf16[2,32,16] {
  %p = bf16[2,32,16] parameter(0)
  ROOT %moved = bf16[2,32,16] transpose(%p), dimensions={0,1,2}
}

%body (s: (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32])) -> (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32]) {
  %s = (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[4,32] get-tuple-element(%s), index=1
  %w = bf16[2,32,16] get-tuple-element(%s), index=2
  %f = bf16[64,32] get-tuple-element(%s), index=3
  %sum = bf16[64,32] get-tuple-element(%s), index=4
  %again = bf16[2,32,16] fusion(%w), kind=kLoop, calls=%move
  %scores = bf16[32,32] dot(%x, %x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  %logits = f32[4,100] dot(%x, %again), lhs_contracting_dims={1}, rhs_contracting_dims={1}, metadata={op_name="jit(f)/head"}
  %part = f32[4,100] copy(%logits)
  %one = s32[] constant(1)
  %i.1 = s32[] add(%i, %one)
  %sum.1 = bf16[64,32] add(%sum, %f)
  ROOT %t = (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32]) tuple(%i.1, %x, %w, %f, %sum.1)
}

%more (s.1: (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32])) -> pred[] {
  %s.1 = (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32]) parameter(0)
  %i.2 = s32[] get-tuple-element(%s.1), index=0
  %two = s32[] constant(2)
  ROOT %lt = pred[] compare(%i.2, %two), direction=LT
}

ENTRY %main (a: bf16[4,32], b: f32[3], w.0: bf16[2,32,16]) -> bf16[4,32] {
  %a = bf16[4,32] parameter(0), metadata={op_name="state.params['a']"}
  %b = f32[3] parameter(1), metadata={op_name="state.opt_state['b']"}
  %w.0 = bf16[2,32,16] parameter(2), metadata={op_name="frozen.params['layers']['up_proj']['kernel']"}
  %zero = s32[] constant(0)
  %constants = bf16[64,32] fusion(), kind=kLoop, calls=%fill
  %sums = bf16[64,32] broadcast(%zero), dimensions={}
  %given = (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32]) tuple(%zero, %a, %w.0, %constants, %sums)
  %loop = (s32[], bf16[4,32], bf16[2,32,16], bf16[64,32], bf16[64,32]) while(%given), condition=%more, body=%body
  ROOT %out = bf16[4,32] get-tuple-element(%loop), index=1
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return program_text.read(TEXT)


def test_facts_of_a_program_with_faults(program):
    found = facts(program, length=32, vocabulary=100)
    assert found.products == {"bf16": 2 * (2 * 4 * 32 * 32 + 2 * 32 * 4 * 100)}
    assert (found.float32, found.float32_bytes) == ("f32[4,100]", 1600)
    assert found.squares == ("bf16[32,32]",)
    assert found.logits == 4
    # The constants that the loop keeps; sums begin at a constant too, and change.
    assert found.filled == 64 * 32 * 2
    assert found.copied == 2 * (2 * 32 * 16 * 2)
    assert found.not_donated == ("state.opt_state['b']",)
    assert (found.sent, found.overlapping) == ({}, 1.0)
    assert which(program, "f32[4,100]")[0] == "logits: up_proj (jit(f)/head)"
    lines = "\n".join(found.lines())
    assert "bf16[32,32]" in lines and "state.opt_state['b']" in lines


def test_facts_of_one_without():
    text = TEXT.replace("%scores = bf16[32,32]", "%scores = bf16[32,31]")
    text = text.replace("transpose(%p)", "negate(%p)")
    text = text.replace("tuple(%i.1, %x, %w, %f,", "tuple(%i.1, %x, %w, %sum.1,")
    text = text.replace("may-alias) }", "may-alias), {1}: (1, {}, may-alias) }")
    found = facts(text, length=32, vocabulary=101)
    assert (found.squares, found.logits, found.filled, found.copied) == ((), 0, 0, 0)
    assert found.not_donated == ()
