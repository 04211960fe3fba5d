"""How XLA is to compute the products of a training step on a GPU.

By itself XLA compiles a product of 16-bit operands as a kernel of Triton's, times it
beside NVIDIA's library on the device, and takes the faster one; what is added to its
result is a pass through memory of its own with either. Told that Triton's are for
products that gain from what is fused into them alone, it gives the others to the
library from the start, which adds in the same pass. Source: XLA's `gemm_fusion.cc` and
`gemm_rewriter.cc`.
"""

import os

FLAG = "xla_gpu_triton_gemm_any"


def options() -> dict[str, bool]:
    """What a GPU's compiler is told; nothing where `XLA_FLAGS` says something of it."""
    return {} if FLAG in os.environ.get("XLA_FLAGS", "") else {FLAG: False}
