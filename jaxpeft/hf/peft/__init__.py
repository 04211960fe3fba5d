"""Adapters on disk, as PEFT and vLLM read and write them."""
