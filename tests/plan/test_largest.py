"""What takes the most memory at the fullest moment of a program."""

from jaxpeft.plan.largest import largest
from jaxpeft.plan.program_text import read

TEXT = """HloModule jit_step, is_scheduled=true

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %early = f32[64,64]{1,0} broadcast(%a), dimensions={}
  %small = f32[2]{0} negate(%early)
  %one = bf16[8,64]{1,0} copy(%a)
  %two = bf16[8,64]{1,0} copy(%a)
  %wide = f32[64,63]{1,0} negate(%small)
  ROOT %r = f32[8,16]{1,0} add(%one, %two, %wide)
}
"""


def test_arrays_of_a_kind_count_together_and_those_that_are_gone_do_not():
    found = largest(read(TEXT), 10)
    assert [(one.nbytes, one.array, one.times) for one in found] == [
        (4 * 64 * 63, "f32[64,63]", 1),
        (2 * 2 * 8 * 64, "bf16[8,64]", 2),
        (4 * 8 * 16, "f32[8,16]", 1),
    ]
    assert str(found[1]).startswith("2 x bf16[8,64] by copy: ")
    assert largest(read(TEXT), 1) == found[:1]
