"""The text of compiled programs: read into operations, and how often each runs."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.plan import loops, program_text
from jaxpeft.plan.collectives import collectives, transfers

# As TPUs have it: no trip counts, loops unrolled by two, collectives cut into fusions.
TPU = """HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (1, {}, may-alias), {1, 2}: (3, {}, must-alias) }, entry_computation_layout={(s32[]{:T(128)})->s32[]}

FileNames
1 "model.py"

FunctionNames
1 "layer"
2 "model.<locals>.body"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=16 end_column=46}
2 {file_name_id=1 function_name_id=2 line=30 end_line=30 column=16 end_column=46}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}

%first (p.0: bf16[2,8]) -> (bf16[2,8], bf16[16,8], u32[]) {
  %p.0 = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  %ag.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.0), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %t.1 = (bf16[2,8], bf16[16,8], u32[]{:S(2)}) tuple(%p.0, %ag.1, %p.0)
}

%middle (p.1: bf16[2,8], p.2: bf16[8,8]) -> bf16[8,8] {
  %p.1 = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  %p.2 = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(1)
  %ag.2 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.1), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %dot.1 = bf16[8,8]{1,0:T(8,128)(2,1)} dot(%p.2, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%last (p.3: bf16[2,8]) -> bf16[16,8] {
  %p.3 = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.3 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p.3), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (state: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %state = (s32[]{:T(128)}, bf16[8,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %two = s32[]{:T(128)} constant(2)
  %at = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[8,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %cp-start = (bf16[8,8], bf16[8,8], u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=7, source_target_pairs={{0,1},{1,0}}
  %start = (bf16[2,8], bf16[16,8], u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%first
  %step = bf16[8,8]{1,0:T(8,128)(2,1)} fusion(%x, %x), kind=kOutput, calls=%middle, metadata={op_name="jit(step)/jvp()/while/body/dot_general" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"640"}}
  %done = bf16[16,8]{1,0:T(8,128)(2,1)} fusion(%start), kind=kCustom, calls=%last
  %cp-done = bf16[8,8] collective-permute-done(%cp-start)
  %next = s32[]{:T(128)} add(%at, %two)
  ROOT %both = (s32[], bf16[8,8]) tuple(%next, %cp-done)
}

%condition (state.1: (s32[], bf16[8,8])) -> pred[] {
  %eight = s32[]{:T(128)} constant(8)
  %state.1 = (s32[]{:T(128)}, bf16[8,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %at.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at.1, %eight), direction=LT
}

%small (p.4: bf16[8,8]) -> bf16[8,8] {
  ROOT %p.4 = bf16[8,8] parameter(0)
}

%large (p.5: bf16[8,8]) -> bf16[8,8] {
  %p.5 = bf16[8,8] parameter(0)
  ROOT %copy.5 = bf16[8,8] copy(%p.5)
}

ENTRY %main (a: bf16[8,8], b: f32[3]) -> (bf16[8,8], f32[3]) {
  %a = bf16[8,8]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="frozen[\\'a\\']"}
  %b = f32[3]{0:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %given = (s32[], bf16[8,8]) tuple(%zero, %a)
  %loop = (s32[], bf16[8,8]) while(%given), condition=%condition, body=%body
  %y = bf16[8,8] get-tuple-element(%loop), index=1
  %chosen = bf16[8,8] conditional(%zero, %y, %y), branch_computations={%small, %large}
  %call = bf16[8,8] custom-call(%chosen, /*index=1*/%b), custom_call_target="k", backend_config="{\\"cost_estimate\\": {\\"flops\\": 7}, \\"text\\": \\"a, calls=(\\"}"
  ROOT %result = (bf16[8,8], f32[3]) tuple(%call, %b)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return program_text.read(TPU)


def test_operations_are_read(program):
    assert list(program.computations) == [
        *["first", "middle", "last", "body", "condition", "small", "large", "main"]
    ]
    main = program.entry.operations
    call = main["call"]
    assert (call.opcode, call.operands) == ("custom-call", ("chosen", "b"))
    assert call.config["cost_estimate"] == {"flops": 7}
    assert call.called == ()
    assert main["a"].op_name == "frozen['a']"
    assert main["loop"].called == (("condition", "condition"), ("body", "body"))
    assert [str(x) for x in main["result"].arrays] == ["bf16[8,8]", "f32[3]"]
    assert program.entry.root.name == "result"
    assert program.aliases == {(0,): 1, (1, 2): 3}
    assert program.scheduled


def test_arrays_have_sizes_and_places(program):
    [gathered] = program.computations["first"].operations["ag.1"].arrays
    assert (gathered.nbytes, gathered.space) == (16 * 8 * 2, 1)
    # Tiles of 8 x 128 take what is smaller to their own size.
    assert gathered.held == 16 * 128 * 2
    [b] = program.entry.operations["b"].arrays
    assert (b.nbytes, b.held, b.space) == (12, 512, 0)
    assert program_text.Array("s4", (3,)).nbytes == 2
    assert program_text.Array("f8e4m3fn", (3,)).nbytes == 3
    with pytest.raises(ValueError, match="dtype q7 "):
        program_text.bits("q7")


def test_the_source_of_an_operation_is_found(program):
    step = program.computations["body"].operations["step"]
    assert program.source(step) == [
        ("layer", "model.py", 12),
        ("model.<locals>.body", "model.py", 30),
    ]
    assert program.source(program.entry.operations["y"]) == []


def test_each_operation_counts_as_often_as_it_runs(program):
    times = {run.operation.name: run.times for run in loops.runs(program)}
    assert times["step"] == 4  # up to 8, by 2
    assert times["loop"] == 1
    assert "dot.1" not in times
    # Of the two branches the one that writes something.
    assert "copy.5" in times and "p.4" not in times
    step = program.computations["body"].operations["step"]
    inside = [one.name for _, one in loops.fused(program, step)]
    assert inside == ["p.1", "p.2", "ag.2", "dot.1"]


def test_a_collective_in_pieces_counts_once(program):
    found = {one.what.kind: one for one in transfers(program)}
    assert len(transfers(program)) == 2
    gather, permute = found["all-gather"], found["collective-permute"]
    assert (gather.start, gather.done) == ("start", "done")
    assert gather.what[:4] == ("all-gather", 256, tuple(range(8)), 4)
    assert (permute.start, permute.done) == ("cp-start", "cp-done")
    assert permute.what[:4] == ("collective-permute", 128, (0, 1), 4)
    assert gather.what.overlaps and permute.what.overlaps
    at_once = TPU.replace("bf16[8,8]{1,0:T(8,128)(2,1)} fusion(%x, %x)", "u8[1] add()")
    assert not any(one.overlaps for one in collectives(at_once))


def test_pieces_within_a_loop_are_no_collectives_of_their_own():
    """Where the start and the end are outside of a loop, and a step of it inside."""
    inner = TPU.replace("%start = (bf16[2,8]", "%elsewhere = (bf16[2,8]")
    inner = inner.replace("%done = bf16[16,8]{1,0:T(8,128)(2,1)} fusion(%start)", "")
    around = "  %start.1 = (bf16[2,8], bf16[16,8]) fusion(%a), calls=%first\n  %loop = "
    inner = inner.replace("  %loop = ", around)
    after = "  %done.1 = bf16[16,8] fusion(%start.1), calls=%last\n  %y = "
    inner = inner.replace("  %y = ", after)
    [gather] = [x for x in transfers(program_text.read(inner)) if "gather" in x.what[0]]
    assert (gather.computation, gather.start, gather.done) == (
        *("main", "start.1", "done.1"),
    )
    assert gather.what.times == 1 and gather.what.overlaps


def test_what_starts_and_takes_several_counts_its_results():
    gpu = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[16,2], b: f32[16]) -> f32[2,2] {
  %a = f32[16,2] parameter(0)
  %b = f32[16] parameter(1)
  %s = ((f32[16,2], f32[16]), (f32[2,2], f32[2])) reduce-scatter-start(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, to_apply=%add
  %d = (f32[2,2], f32[2]) reduce-scatter-done(%s)
  %w = ((f32[16]), f32[16]) async-start(%b), calls=%wrapped
  %e = f32[16] async-done(%w)
  ROOT %r = f32[2,2] get-tuple-element(%d), index=0
}

%wrapped (p: f32[16]) -> f32[16] {
  %p = f32[16] parameter(0)
  ROOT %x = f32[16] all-to-all(%p), replica_groups=[1,8]<=[8], dimensions={0}
}
"""  # noqa: E501
    found = {one.kind: one.nbytes for one in collectives(gpu)}
    assert found == {"reduce-scatter": 4 * (32 + 16), "all-to-all": 64}


@pytest.mark.parametrize(("length", "unroll"), [(7, 1), (12, 3), (1000, 1)])
def test_loops_whose_length_is_not_noted_are_followed(length, unroll):
    def f(x):
        def body(x, _):
            def inner(_, x):
                return jnp.sin(x)

            return jax.lax.fori_loop(2, 5, inner, x), None

        return jax.lax.scan(body, x, None, length=length, unroll=unroll)[0]

    noted = str(jax.jit(f).lower(jnp.ones(16)).compile().as_text())
    assert "known_trip_count" in noted
    bare = re.sub(r"( while\(.*), backend_config=.*", r"\1", noted)
    assert "known_trip_count" not in bare

    def turns(text):
        program = program_text.read(text)
        found = [run for run in loops.runs(program) if run.operation.opcode == "while"]
        return [loops.trips(program, x.operation, x.computation) for x in found]

    assert turns(bare) == turns(noted)
    assert turns(bare)[0] == length // unroll


def test_a_loop_that_data_ends_has_no_known_length():
    def f(x):
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x * 2, x)

    program = program_text.read(jax.jit(f).lower(jnp.ones(16)).compile())
    [loop] = [x for x in loops.runs(program) if x.operation.opcode == "while"]
    assert loops.trips(program, loop.operation, loop.computation) is None


def test_an_operation_s_notes_may_have_lines_of_their_own(program):
    note = 'frontend_attributes={kernel_metadata={\n"a":"{\\"b\\": 1}"\n}}, metadata={'
    text = TPU.replace(
        'metadata={op_name="jit(step)/jvp', f'{note}op_name="jit(step)/jvp'
    )
    assert text.count("\n") == TPU.count("\n") + 2
    again = program_text.read(text)
    body, before = again.computations["body"], program.computations["body"]
    assert list(body.operations) == list(before.operations)
    step = body.operations["step"]
    assert step.op_name == before.operations["step"].op_name
    assert step.config == before.operations["step"].config


def test_no_text_of_a_program_is_no_program():
    with pytest.raises(ValueError, match="without an entry"):
        program_text.read("hello")


def test_operands_that_are_shared_are_worked_out_once():
    # Without that each level would double the work: 2^60 additions.
    chain = "\n".join(f"  %z{i + 1} = s32[] add(%z{i}, %z{i})" for i in range(60))
    text = f"""HloModule jit_step

%body (p: (s32[])) -> (s32[]) {{
  %p = (s32[]) parameter(0)
  %z0 = s32[] get-tuple-element(%p), index=0
{chain}
  %none = s32[] constant(0)
  %one = s32[] constant(1)
  %zero = s32[] multiply(%z60, %none)
  %more = s32[] add(%z0, %one)
  %next = s32[] add(%more, %zero)
  ROOT %t = (s32[]) tuple(%next)
}}

%cond (p: (s32[])) -> pred[] {{
  %p = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %end = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}}

ENTRY %main () -> s32[] {{
  %zero = s32[] constant(0)
  %in = (s32[]) tuple(%zero)
  %loop = (s32[]) while(%in), condition=%cond, body=%body
  ROOT %r = s32[] get-tuple-element(%loop), index=0
}}
"""
    program = program_text.read(text)
    loop = program.entry.operations["loop"]
    assert loops.trips(program, loop, program.entry) == 5
