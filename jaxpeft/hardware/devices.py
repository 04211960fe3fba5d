"""What accelerators have and can compute, by the names that JAX has for them.

Peaks are of products added up in float32 (int8: in int32), without structured sparsity:
of what makers print "with sparsity" that is the half. From NVIDIA's data sheets of each
card, and Google Cloud's page on each TPU (the links of v2 to v4: Jouppi et al., 2023,
table 4); where JAX shows half a chip as a device, half. Links to the host are those of
the PCI Express that each card has, 16 lanes; of TPUs as Austin et al. give them in "How
to Scale Your Model", 2025 (tpu7x, which they do not name, is taken to be as v6e).
"""

from typing import NamedTuple


class Device(NamedTuple):
    """One device as JAX counts them.

    Attributes:
        bf16: FLOP in a second, of bfloat16 operands; 0: it has no such units.
        fp8: of 8-bit floats; 0: none.
        int8: operations in a second of 8-bit integers; 0: none.
        memory: bytes of its own memory, as sold; 0: not known.
        bandwidth: bytes in a second to and from that memory; 0: not known.
        link: bytes in a second that it can send to others of its kind in one node or
            slice, over all links; 0: not known.
        fp16: FLOP in a second of float16 operands, where that is not `bf16`.
        host: bytes in a second to the host, and as many back.
    """

    bf16: float
    fp8: float = 0
    int8: float = 0
    memory: float = 0
    bandwidth: float = 0
    link: float = 0
    fp16: float = 0
    host: float = 32e9

    @property
    def in_16_bits(self) -> float:
        """FLOP in a second of operands in bfloat16, or in float16 without that."""
        return self.bf16 or self.fp16


# The name in `device.device_kind`, or how it begins.
DEVICES: dict[str, Device] = {
    "NVIDIA B200": Device(2250e12, 4500e12, 4500e12, 180e9, 8000e9, 900e9, host=64e9),
    "NVIDIA H200": Device(989e12, 1979e12, 1979e12, 141e9, 4800e9, 450e9, host=64e9),
    "NVIDIA H100 PCIe": Device(
        756e12, 1513e12, 1513e12, 80e9, 2000e9, 300e9, host=64e9
    ),
    "NVIDIA H100 NVL": Device(835e12, 1671e12, 1671e12, 94e9, 3900e9, 300e9, host=64e9),
    "NVIDIA H100": Device(989e12, 1979e12, 1979e12, 80e9, 3350e9, 450e9, host=64e9),
    "NVIDIA A100": Device(312e12, 0, 624e12, 40e9, 1555e9, 300e9),
    "NVIDIA A100-SXM4-80GB": Device(312e12, 0, 624e12, 80e9, 2039e9, 300e9),
    "NVIDIA A100 80GB": Device(312e12, 0, 624e12, 80e9, 1935e9, 32e9),
    "NVIDIA L40S": Device(362e12, 733e12, 733e12, 48e9, 864e9, 32e9),
    "NVIDIA L4": Device(121e12, 242e12, 242e12, 24e9, 300e9, 32e9),
    "NVIDIA A10G": Device(70e12, 0, 140e12, 24e9, 600e9, 32e9),
    "NVIDIA A10": Device(125e12, 0, 250e12, 24e9, 600e9, 32e9),
    "NVIDIA GeForce RTX 4090": Device(165e12, 330e12, 661e12, 24e9, 1008e9, 32e9),
    "NVIDIA GeForce RTX 3090": Device(71e12, 0, 284e12, 24e9, 936e9, 32e9),
    "NVIDIA GeForce RTX 2080 Ti": Device(
        0, 0, 215e12, 11e9, 616e9, 16e9, fp16=53.8e12, host=16e9
    ),
    "NVIDIA GeForce RTX 2080": Device(
        0, 0, 161e12, 8e9, 448e9, 16e9, fp16=40.3e12, host=16e9
    ),
    "NVIDIA GeForce RTX 2070": Device(
        0, 0, 119e12, 8e9, 448e9, 16e9, fp16=29.9e12, host=16e9
    ),
    "NVIDIA GeForce RTX 2060": Device(
        0, 0, 103e12, 6e9, 336e9, 16e9, fp16=25.8e12, host=16e9
    ),
    "Quadro RTX 8000": Device(0, 0, 261e12, 48e9, 672e9, 50e9, fp16=131e12, host=16e9),
    "Quadro RTX 6000": Device(0, 0, 261e12, 24e9, 672e9, 50e9, fp16=131e12, host=16e9),
    "NVIDIA TITAN RTX": Device(0, 0, 261e12, 24e9, 672e9, 50e9, fp16=131e12, host=16e9),
    "Tesla T4": Device(0, 0, 130e12, 16e9, 320e9, 16e9, fp16=65e12, host=16e9),
    "Tesla P100": Device(0, 0, 0, 16e9, 732e9, 32e9, fp16=18.7e12, host=16e9),
    "Tesla V100": Device(0, 0, 0, 16e9, 900e9, 150e9, fp16=125e12, host=16e9),
    "TPU7x": Device(1153.5e12, 2307e12, 0, 96e9, 3690e9, 300e9),
    "TPU v6 lite": Device(918e12, 0, 1836e12, 32e9, 1640e9, 400e9),
    "TPU v5 lite": Device(197e12, 0, 394e12, 16e9, 819e9, 200e9, host=16e9),
    "TPU v5p": Device(459e12, 0, 918e12, 95e9, 2765e9, 600e9, host=16e9),
    "TPU v5": Device(459e12, 0, 918e12, 95e9, 2765e9, 600e9, host=16e9),
    "TPU v4 lite": Device(138e12, 0, 0, 8e9, 614e9, 0, host=16e9),
    "TPU v4": Device(275e12, 0, 275e12, 32e9, 1228e9, 300e9, host=16e9),
    "TPU v3": Device(61.5e12, 0, 0, 16e9, 450e9, 140e9, host=16e9),
    "TPU v2": Device(23e12, 0, 0, 8e9, 350e9, 124e9, host=16e9),
}


def device_of(kind: str) -> Device | None:
    """What is known of a device; None where that is nothing.

    Args:
        kind: JAX's `device_kind`.
    """
    fitting = [
        name for name in DEVICES if f"{kind} ".startswith((f"{name} ", f"{name}-"))
    ]
    return DEVICES[max(fitting, key=len)] if fitting else None
