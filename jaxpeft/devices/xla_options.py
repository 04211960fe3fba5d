"""What XLA is told of a step: the same where it runs and where it is planned."""

from typing import Any

from jaxpeft.devices import gpu_memory, gpu_products, host_memory


def options(
    lowered: Any,
    platform: str,
    count: int,
    room: gpu_memory.Room | None,
    *,
    carries: bool,
) -> dict[str, Any]:
    """What a compiler is told of a program, beside `XLA_FLAGS`.

    Args:
        lowered: the program, a `jax.stages.Lowered`.
        platform: "cpu", "gpu" or "tpu".
        count: of its devices. Several GPUs are told nothing of their memory: what they
            send each other is scheduled by the same number, and all have to be told
            the same.
        room: of a GPU; None: it is not known.
        carries: whether it is a step, which makes a new state of the one it is given.
    """
    told: dict[str, Any] = host_memory.options(lowered, platform)
    if platform != "gpu":
        return told
    if count == 1 and room is not None:
        told = {**told, **gpu_memory.options(lowered, room)}
    return {**told, **gpu_products.options()} if carries else told
