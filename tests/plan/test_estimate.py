"""What compiled programs cost: arithmetic, bytes and seconds, beside closed forms."""

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.hardware import Target
from jaxpeft.plan import flops, loops, products, program_text, traffic
from jaxpeft.plan.estimate import CLOCKS, SHARES, estimate
from jaxpeft.plan.origins import Origins

V5E, H100 = Target("tpu", "TPU v5 lite", 8), Target("gpu", "NVIDIA H100", 8)


def arithmetic(text):
    program = program_text.read(text)
    return sum(
        x.flops * run.times
        for run in loops.runs(program)
        for x in products.products(program, run.computation, run.operation)
    )


def test_products_are_counted_as_in_the_traced_program():
    def f(x, w, v):
        def body(x, w):
            scores = jnp.einsum("bqd,bkd->bqk", x, x)
            return jnp.einsum("bqk,bkd->bqd", scores, x) @ w, None

        x, _ = jax.lax.scan(body, x, w)
        return jnp.sum((x @ v) ** 2)

    shapes = (3, 16, 8), (5, 8, 8), (8, 32)
    traced = jax.jit(jax.grad(f, (0, 1))).trace(*map(jnp.ones, shapes))
    assert arithmetic(traced.lower().compile()) == flops.count(traced.jaxpr)


def convolution(window, labels, out, left, right):
    return f"""HloModule m

ENTRY %main (a: bf16[{left}], b: bf16[{right}]) -> bf16[{out}] {{
  %a = bf16[{left}] parameter(0)
  %b = bf16[{right}] parameter(1)
  ROOT %c = bf16[{out}] convolution(%a, %b), {window}dim_labels={labels}
}}
"""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (convolution("", "bf_io->bf", "16,8", "16,4", "4,8"), 2 * 16 * 8 * 4),
        (convolution("", "fb_oi->bf", "16,8", "4,16", "8,4"), 2 * 16 * 8 * 4),
        # As a TPU has products in batches: of 2 and of 3 places each meets one.
        (
            convolution(
                "window={size=2x3 stride=1x2 lhs_dilate=2x3}, ",
                "01bf_01io->01bf",
                *("2,3,16,8", "2,3,16,4", "2,3,4,8"),
            ),
            2 * 2 * 3 * 16 * 8 * 4,
        ),
        (
            convolution(
                "window={size=3 pad=1_1}, ", "b0f_0io->b0f", "1,5,8", "1,5,4", "3,4,8"
            ),
            2 * 8 * 4 * (3 * 5 - 2),
        ),
    ],
)
def test_products_written_as_convolutions(text, count):
    assert arithmetic(text) == count


ATTENTION = """HloModule m

ENTRY %main (q: bf16[2,64,6,32], k: bf16[2,64,2,32]) -> bf16[2,6,64,32] {
  %q = bf16[2,64,6,32] parameter(0)
  %k = bf16[2,64,2,32] parameter(1)
  %a = (bf16[2,6,64,32], f32[2,6,64]) custom-call(%q, %k, %k), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": ["2", "6", "64", "64"]}, "mask_type": "NO_MASK", "sliding_window_length": 0}}
  ROOT %o = bf16[2,6,64,32] get-tuple-element(%a), index=0
}
"""  # noqa: E501


def test_attention_kernels_have_their_formula():
    whole = 2 * 2 * (2 * 6 * 64 * 64 * 32)
    assert arithmetic(ATTENTION) == whole
    causal = ATTENTION.replace("NO_MASK", "CAUSAL")
    assert arithmetic(causal) == whole / 64 * (64 + 1) / 2
    window = ATTENTION.replace('window_length": 0', 'window_length": 16')
    assert arithmetic(window) == whole / 4
    back = ATTENTION.replace("fmhaSoftmax", "fmhaSoftmaxBackward")
    assert arithmetic(back) == whole * 5 / 2


def cost_of(text, target):
    found = estimate(text, target)
    assert found is not None
    return found


def test_kernels_of_attention_are_known_by_their_scopes():
    forward = 2 * 2 * 6 * 64 * (65 / 2) * 32 * 2
    for scope, count in products.SCOPES.items():
        text = ATTENTION.replace("__cudnn$fmhaSoftmax", "__gpu$xla.gpu.triton")
        name = f'metadata={{op_name="jit(f)/{scope}_rest/pallas_call"}}, backend_config'
        text = text.replace("backend_config", name)
        assert arithmetic(text) == forward / 2 * count
        assert cost_of(text, H100).unknown == ()


SPLASH = """HloModule m

ENTRY %main (b: s32[1,8,2], q: bf16[6,64,32], k: bf16[2,64,32]) -> bf16[6,64,32] {
  %b = s32[1,8,2] parameter(0)
  %q = bf16[6,64,32] parameter(1)
  %k = bf16[2,64,32] parameter(2)
  ROOT %a = bf16[6,64,32] custom-call(%b, %q, %k, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/splash_mha_fwd_segmented/pallas_call"}
}
"""  # noqa: E501


def test_rows_that_lie_end_to_end_are_told_by_the_blocks_they_read():
    """Eight blocks of 8 places, each reading 2 at most: four rows of 16 places."""
    rows = 2 * 2 * 6 * 64 * (17 / 2) * 32
    assert arithmetic(SPLASH) == rows
    assert arithmetic(SPLASH.replace("s32[1,8,2]", "s32[1,2,8]")) == rows
    assert arithmetic(SPLASH.replace("s32[1,8,2]", "s32[1,8,8]")) == rows * 65 / 17


LAYERS = """HloModule m, is_scheduled=true

FileNames
1 "lib/jaxpeft/models/layer.py"

FunctionNames
1 "_mlp"

FileLocations
1 {file_name_id=1 function_name_id=1 line=12 end_line=12 column=16 end_column=46}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%product (p.0: bf16[512,1024], p.1: bf16[1024,1024]) -> bf16[512,1024] {
  %p.0 = bf16[512,1024] parameter(0)
  %p.1 = bf16[4,1024,1024] parameter(1)
  %p.2 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %one = bf16[1,1024,1024] dynamic-slice(%p.1, %p.2, %zero.1, %zero.1), dynamic_slice_sizes={1,1024,1024}
  %w = bf16[1024,1024] bitcast(%one)
  ROOT %dot = bf16[512,1024] dot(%p.0, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/transpose(jvp())/while/body/dot_general" stack_frame_id=1}
}

%keep (q.0: bf16[4,512,1024], q.1: bf16[512,1024], q.2: s32[]) -> bf16[4,512,1024] {
  %q.0 = bf16[4,512,1024] parameter(0)
  %q.1 = bf16[512,1024] parameter(1)
  %q.2 = s32[] parameter(2)
  %zero.2 = s32[] constant(0)
  %row = bf16[1,512,1024] bitcast(%q.1)
  ROOT %put = bf16[4,512,1024] dynamic-update-slice(%q.0, %row, %q.2, %zero.2, %zero.2)
}

%body (s: (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024])) -> (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024]) {
  %s = (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = bf16[512,1024] get-tuple-element(%s), index=1
  %ws = bf16[4,1024,1024] get-tuple-element(%s), index=2
  %kept = bf16[4,512,1024] get-tuple-element(%s), index=3
  %send = (bf16[512,1024], bf16[512,1024], u32[], u32[]) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %y = bf16[512,1024] fusion(%x, %ws, %i), kind=kOutput, calls=%product, backend_config={"window_config":{"estimated_cycles":"3000000"}}
  %sent = bf16[512,1024] collective-permute-done(%send)
  %kept.1 = bf16[4,512,1024] fusion(%kept, %sent, %i), kind=kLoop, calls=%keep
  %step = s32[] constant(1)
  %i.1 = s32[] add(%i, %step)
  ROOT %t = (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024]) tuple(%i.1, %y, %ws, %kept.1)
}

%more (s.1: (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024])) -> pred[] {
  %s.1 = (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024]) parameter(0)
  %i.2 = s32[] get-tuple-element(%s.1), index=0
  %four = s32[] constant(4)
  ROOT %lt = pred[] compare(%i.2, %four), direction=LT
}

ENTRY %main (x.0: bf16[512,1024], ws.0: bf16[4,1024,1024], k.0: bf16[4,512,1024]) -> bf16[512,1024] {
  %x.0 = bf16[512,1024] parameter(0)
  %ws.0 = bf16[4,1024,1024] parameter(1), metadata={op_name="frozen[\\'model\\'][\\'layers\\'][\\'mlp\\'][\\'up_proj\\'][\\'kernel\\']"}
  %k.0 = bf16[4,512,1024] parameter(2)
  %zero = s32[] constant(0)
  %given = (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024]) tuple(%zero, %x.0, %ws.0, %k.0)
  %loop = (s32[], bf16[512,1024], bf16[4,1024,1024], bf16[4,512,1024]) while(%given), condition=%more, body=%body
  ROOT %out = bf16[512,1024] get-tuple-element(%loop), index=1
}
"""  # noqa: E501
ROWS, WEIGHT = 512 * 1024 * 2, 1024 * 1024 * 2
WORK = 2 * 512 * 1024 * 1024


def test_of_stacks_one_layer_is_read_and_one_row_written():
    program = program_text.read(LAYERS)
    body = program.computations["body"]
    nbytes = {x: traffic.moved(program, body, body.operations[x]) for x in body.users}
    assert nbytes["y"] == ROWS + (WEIGHT + 4) + ROWS
    assert nbytes["kept.1"] == ROWS + 4 + ROWS
    assert nbytes["ws"] == nbytes["t"] == nbytes["sent"] == 0
    # What lies near the units of a TPU moves nothing.
    near = LAYERS.replace("%y = bf16[512,1024]", "%y = bf16[512,1024]{1,0:S(1)}")
    program = program_text.read(near)
    body = program.computations["body"]
    assert traffic.moved(program, body, body.operations["y"]) == ROWS + WEIGHT + 4


def test_the_workspace_of_a_product_is_no_result():
    text = """HloModule m

ENTRY %main (a: bf16[512,1024], w: bf16[1024,1024], c: bf16[512,1024]) -> bf16[512,1024] {
  %a = bf16[512,1024] parameter(0)
  %w = bf16[1024,1024] parameter(1)
  %c = bf16[512,1024] parameter(2)
  %y = (bf16[512,1024], s8[33554432]) custom-call(%a, %w, %c), custom_call_target="__cublas$lt$matmul"
  ROOT %r = bf16[512,1024] get-tuple-element(%y), index=0
}
"""  # noqa: E501
    program = program_text.read(text)
    product = program.entry.operations["y"]
    assert traffic.moved(program, program.entry, product) == 3 * ROWS + WEIGHT


def test_a_step_takes_its_operations_one_after_another_and_what_is_waited_for():
    found, device, share = cost_of(LAYERS, H100), H100.device, SHARES["gpu"]
    assert device is not None
    product = max(
        WORK / device.bf16 / share.products,
        (2 * ROWS + WEIGHT + 4) / device.bandwidth / share.memory,
        share.least,
    )
    keep = max(2 * ROWS / device.bandwidth / share.memory, share.least)
    send = ROWS / device.link / share.links
    assert send > product  # the rest of it is waited for
    turn = send + keep + 2e-6  # and the counter
    assert found.seconds == found.roofline == pytest.approx(4 * turn, rel=1e-3)
    assert found.waits == pytest.approx(4 * (send - product))
    assert found.sent == 4 * ROWS
    assert found.sent_exposed == pytest.approx(4 * ROWS * (1 - product / send))
    assert found.flops == 4 * WORK
    assert found.at_peak == pytest.approx(4 * WORK / 989e12)
    assert found.cycles is None and found.unknown == ()


def test_the_compiler_s_cycles_count_where_it_notes_them():
    found = cost_of(LAYERS, V5E)
    assert found.cycles == 4 * 3_000_000
    assert found.seconds == pytest.approx(found.cycles / CLOCKS["TPU v5 lite"])
    assert found.waits == 0  # a millisecond hides it
    assert found.places[0].name == "mlp.up_proj, backward"
    assert found.places[0].flops == 4 * WORK
    longer = LAYERS.replace('"3000000"', '"9223372036854775807"')
    assert cost_of(longer, V5E).cycles is None


def test_without_a_device_s_peaks_nothing_is_estimated():
    assert estimate(LAYERS, Target("cpu", "cpu", 1)) is None
    assert estimate(LAYERS, Target("gpu", "NVIDIA GeForce 256", 1)) is None


def test_a_kernel_that_says_nothing_is_named():
    text = ATTENTION.replace("__cudnn$fmhaSoftmax", "my_kernel")
    assert cost_of(text, H100).unknown == ("my_kernel",)
    assert cost_of(ATTENTION, H100).unknown == ()
    note = '"custom_call_config": {"cost_estimate": {"flops": "7", '
    note += '"bytes_accessed": "9"}}, "cudnn'
    said = text.replace('"cudnn', note)
    assert cost_of(said, H100).unknown == ()
    assert (cost_of(said, H100).flops, cost_of(said, H100).nbytes) == (7, 9)


def test_weights_are_followed_through_loops():
    program = program_text.read(LAYERS)
    body, names = program.computations["body"], Origins(program)
    assert names.name(body, body.operations["y"]) == "mlp.up_proj, backward"
    assert names.parameter(body, "ws").endswith("['mlp']['up_proj']['kernel']")
    assert names.parameter(body, "x") == ""
    assert names.name(body, body.operations["kept.1"]) == "other"
