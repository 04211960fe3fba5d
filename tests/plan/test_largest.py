"""The largest arrays of a program, read from a text."""

from jaxpeft.plan.largest import largest
from jaxpeft.plan.program_text import read

TEXT = """HloModule jit_step

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %wide = f32[8,64]{1,0} broadcast(%i), dimensions={}
  %near = f32[512,512]{1,0:S(1)} broadcast(%i), dimensions={}
  %put = f32[999]{0} dynamic-update-slice(%x, %i, %i)
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %x)
}

%cond (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %less = pred[] constant(false)
}

ENTRY %main (a: f32[8,16], big: f32[4096]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %big = f32[4096]{0} parameter(1)
  %zero = s32[] constant(0)
  %in = (s32[], f32[8,16]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[8,16]{1,0}) while(%in), condition=%cond, body=%body
  %nearer = (f32[4096]{0:S(1)}, f32[4096]{0}, u32[]) copy-start(%big)
  %begun = (f32[4096]{0}, f32[16384]{0}) all-gather-start(%big), replica_groups={{0,1,2,3}}, dimensions={0}
  %all = f32[16384]{0} all-gather-done(%begun)
  %one = bf16[4,8]{1,0} copy(%a)
  %two = bf16[4,8]{1,0} copy(%a)
  ROOT %r = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_what_is_made_in_the_devices_memory_is_listed_largest_first():
    found = largest(read(TEXT), 10)
    assert [(one.nbytes, one.array, one.opcode, one.times) for one in found] == [
        (4 * 16384, "f32[16384]", "all-gather-start", 1),
        (4 * 8 * 64, "f32[8,64]", "broadcast", 1),
        (2 * 4 * 8, "bf16[4,8]", "copy", 2),
    ]
    assert largest(read(TEXT), 1) == found[:1]
