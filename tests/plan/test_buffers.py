"""What is in memory at a program's fullest moment, beside what its compiler needs."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.plan import program_text
from jaxpeft.plan.buffers import peak

ROW = 1024 * 1024 * 4
TEXT = """HloModule m, is_scheduled=true

%body (s: (s32[], f32[1024,1024], f32[4,1024,1024])) -> (s32[], f32[1024,1024], f32[4,1024,1024]) {
  %s = (s32[], f32[1024,1024], f32[4,1024,1024]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[1024,1024] get-tuple-element(%s), index=1
  %kept = f32[4,1024,1024] get-tuple-element(%s), index=2
  %a = f32[1024,1024] negate(%x)
  %b = f32[2,1024,1024] broadcast(%a), dimensions={1,2}
  %c = f32[1024,1024] reduce(%b), dimensions={0}
  %d = f32[1,1024,1024] bitcast(%c)
  %kept.1 = f32[4,1024,1024] dynamic-update-slice(%kept, %d, %i)
  %y = f32[1024,1024] add(%x, %x)
  ROOT %t = (s32[], f32[1024,1024], f32[4,1024,1024]) tuple(%i, %y, %kept.1)
}

%more (s.1: (s32[], f32[1024,1024], f32[4,1024,1024])) -> pred[] {
  %s.1 = (s32[], f32[1024,1024], f32[4,1024,1024]) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x.0: f32[1024,1024]) -> f32[1024,1024] {
  %x.0 = f32[1024,1024] parameter(0)
  %zero = s32[] constant(0)
  %first = f32[1024,1024] copy(%x.0)
  %stack = f32[4,1024,1024] broadcast(%zero), dimensions={}
  %given = (s32[], f32[1024,1024], f32[4,1024,1024]) tuple(%zero, %first, %stack)
  %loop = (s32[], f32[1024,1024], f32[4,1024,1024]) while(%given), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %out = f32[1024,1024] get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_the_fullest_moment_of_a_loop():
    found = peak(program_text.read(TEXT))
    # Around it the stack and the row that is carried; in it, at the third operation,
    # the doubled row with what it is made to: the stack is written in place.
    assert [one.operation.name for one in found.buffers] == ["stack", "b", "a", "first"]
    assert found.nbytes == (4 + 2 + 1 + 1) * ROW


def test_it_is_near_what_the_compiler_needs():
    def f(x, w):
        def body(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(jax.checkpoint(body), x, w)[0].sum()

    compiled = jax.jit(jax.grad(f, (0, 1))).lower(*map(jnp.ones, SHAPES)).compile()
    memory: Any = compiled.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert peak(program_text.read(compiled)).nbytes == pytest.approx(needed, rel=0.1)


SHAPES = (256, 128), (6, 128, 128)
