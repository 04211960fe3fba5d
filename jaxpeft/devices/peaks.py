"""What accelerators can compute at most, by the names that JAX has for them.

Products of bfloat16 matrices added up in float32, without structured sparsity: of what
makers print "with sparsity" that is the half. From NVIDIA's data sheets of each card,
and Google Cloud's page on each TPU; where JAX shows half a chip as a device, half.
"""

# The name in `device.device_kind`, or how it begins -> FLOP in a second and device.
BF16: dict[str, float] = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 23e12,
}


def bf16(kind: str) -> float | None:
    """The peak of a device in FLOP a second; None where it is not known.

    Args:
        kind: JAX's `device_kind`.
    """
    fitting = [name for name in BF16 if f"{kind} ".startswith((f"{name} ", f"{name}-"))]
    return BF16[max(fitting, key=len)] if fitting else None
