"""Hugging Face's formats, in and out: models, tokenizers, PEFT adapters, the hub."""

from jaxpeft.hf.generation_config import sampling, stop_ids
from jaxpeft.hf.hub import resolve
from jaxpeft.hf.identity import fingerprint
from jaxpeft.hf.load import is_quantized, kept_whole, load
from jaxpeft.hf.peft.load import load_adapter
from jaxpeft.hf.peft.save import save_adapter
from jaxpeft.hf.peft.score_head import adapter_labels
from jaxpeft.hf.peft.vllm import save_for_vllm
from jaxpeft.hf.peft.writable import check_writable
from jaxpeft.hf.save import save
from jaxpeft.hf.tokenizer import (
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    check_vocab,
    load_tokenizer,
    vocabulary_size,
)

__all__ = [
    "PROCESSOR_FILES",
    "TOKENIZER_FILES",
    "check_vocab",
    "check_writable",
    "fingerprint",
    "is_quantized",
    "kept_whole",
    "load",
    "adapter_labels",
    "load_adapter",
    "load_tokenizer",
    "resolve",
    "sampling",
    "save",
    "save_adapter",
    "save_for_vllm",
    "stop_ids",
    "vocabulary_size",
]
