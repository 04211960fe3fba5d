"""How much of what its devices can compute a run uses: the MFU of its log."""

from jaxpeft import hardware, tree
from jaxpeft.assembly.run import Run
from jaxpeft.assembly.summary import parameter_counts
from jaxpeft.plan.flops import per_token


def mfu_per_speed(run: Run) -> float | None:
    """The share of the devices' peak that a speed of one token a second is.

    None where their peak in 16 bits is not known, or another one holds: weights or
    activations in float32. Also for mixtures of experts, which use parts of themselves.

    Args:
        run: of which a step is taken.
    """
    device = hardware.of_mesh(run.mesh).device
    peak = device.in_16_bits if device else 0.0
    cfg = run.base.cfg
    if not peak or run.base.dtype == "float32" or cfg.activation_dtype is not None:
        return None
    if cfg.experts is not None:
        return None
    params = tree.combine(run.trainable, run.frozen)
    total, trainable = parameter_counts(params, run.trainable)
    embedding = 0 if cfg.tie_word_embeddings else cfg.vocab_size * cfg.hidden_size
    return per_token(total, trainable, embedding) / (peak * run.mesh.size)
