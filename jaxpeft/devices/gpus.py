"""NVIDIA GPUs as their compiler wants them described, for one that is not there.

The limits are those of each compute capability in the CUDA C++ programming guide, the
sizes and clocks those that the driver reports of each card (as XLA's own descriptions
of A100, H100, H200 and B200 have them, and NVIDIA's papers on the architectures of
Turing, Ada, Hopper and Blackwell).
"""

from typing import NamedTuple

CUDNN = (9, 10)  # the version that programs are compiled for
KIB, MIB = 2**10, 2**20


class Gpu(NamedTuple):
    """What a compiler asks of a GPU.

    Attributes:
        kind: JAX's `device_kind`.
        capability: of compute, (major, minor).
        cores: streaming multiprocessors.
        fpus: units for float32 in each of them.
        clock: in GHz, the highest.
        threads: that a multiprocessor holds.
        shared: bytes of shared memory in a multiprocessor.
        memory: bytes that the driver reports.
        bandwidth: bytes in a second to and from the memory.
        l2: bytes of its second cache.
        links: NVLinks to other GPUs.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    fpus: int
    clock: float
    threads: int
    shared: int
    memory: int
    bandwidth: float
    l2: int
    links: int = 0


def _a100(kind: str, memory: int, bandwidth: float) -> Gpu:
    sizes = (108, 64, 1.41, 2048, 164 * KIB)
    return Gpu(kind, (8, 0), *sizes, memory, bandwidth, 40 * MIB, 12)


def _hopper(kind: str, memory: int, bandwidth: float) -> Gpu:
    sizes = (132, 128, 1.98, 2048, 228 * KIB)
    return Gpu(kind, (9, 0), *sizes, memory, bandwidth, 50 * MIB, 18)


# By the name that a target has before its "x" and its count.
GPUS: dict[str, Gpu] = {
    "a100-40": _a100("NVIDIA A100-SXM4-40GB", 42331013120, 1555.2e9),
    "a100-80": _a100("NVIDIA A100-SXM4-80GB", 85100068864, 2039.04e9),
    "h100": _hopper("NVIDIA H100 80GB HBM3", 84942979072, 3352.32e9),
    "h200": _hopper("NVIDIA H200", 150754820096, 4800e9),
    "b200": Gpu(
        *("NVIDIA B200", (10, 0), 148, 128, 1.965, 2048, 228 * KIB),
        *(191514411008, 7672.32e9, 132644864, 18),
    ),
    "l40s": Gpu(
        *("NVIDIA L40S", (8, 9), 142, 128, 2.52, 1536, 100 * KIB),
        *(47810936832, 864e9, 96 * MIB),
    ),
    "rtx4090": Gpu(
        *("NVIDIA GeForce RTX 4090", (8, 9), 128, 128, 2.52, 1536, 100 * KIB),
        *(25393692672, 1008e9, 72 * MIB),
    ),
    "t4": Gpu(
        *("Tesla T4", (7, 5), 40, 64, 1.59, 1024, 64 * KIB),
        *(15843721216, 320e9, 4 * MIB),
    ),
}


def description(gpu: Gpu) -> str:
    """The text that XLA reads as the target of a compilation (`GpuTargetConfigProto`).

    Args:
        gpu: one of `GPUS`.
    """
    major, minor = gpu.capability
    # Code for one architecture alone: what Hopper's and Blackwell's matrix units want.
    features = "ACCELERATED_FEATURES" if major in (9, 10) else "NONE"
    # A kibibyte of each block's is the system's, since Ampere.
    own = gpu.shared - (KIB if major >= 8 else 0)
    links = f"device_interconnect_info {{ active_links: {gpu.links} }}"
    return f"""
gpu_device_info {{
  name: "{gpu.kind}"
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {features}
  }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  clock_rate_ghz: {gpu.clock}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {gpu.threads}
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_block_optin: {own}
  shared_memory_per_core: {gpu.shared}
  l2_cache_size: {gpu.l2}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {gpu.bandwidth:.0f}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  {links if gpu.links else ""}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{gpu.kind}"
"""
