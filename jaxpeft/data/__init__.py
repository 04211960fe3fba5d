"""Data: files -> records -> conversations -> examples -> batches."""

from jaxpeft.data.batches import Batch, Batches, EvalBatches, collate
from jaxpeft.data.conversation import Conversation
from jaxpeft.data.examples import Examples, SourceSummary, Summary
from jaxpeft.data.formats import FORMATS
from jaxpeft.data.load import load_eval, load_train
from jaxpeft.data.render import Example
from jaxpeft.data.streamed import StreamBatches

__all__ = [
    "FORMATS",
    "Batch",
    "Batches",
    "Conversation",
    "EvalBatches",
    "Example",
    "Examples",
    "SourceSummary",
    "StreamBatches",
    "Summary",
    "collate",
    "load_eval",
    "load_train",
]
