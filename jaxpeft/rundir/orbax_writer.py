"""Orbax as the checkpoints use it."""

import logging
from pathlib import Path

import orbax.checkpoint as ocp


def make_writer() -> ocp.AsyncCheckpointer:
    """Orbax below its CheckpointManager, which would count and prune unsealed steps."""
    # All that Orbax logs as an error it raises as well, and its warnings are notes on
    # its own workings; a full disk would be several hundred lines of tracebacks.
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(
            # Weights hardly compress, and the cores are busy with the training.
            state=ocp.PyTreeCheckpointHandler(use_compression=False),
            record=ocp.JsonCheckpointHandler(),
        ),
        # Made in the background, a directory that cannot be made leaves threads that
        # wait for it for minutes.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts
