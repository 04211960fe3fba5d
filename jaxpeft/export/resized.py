"""A model with a row in its embedding for every token of a tokenizer."""

import jax

from jaxpeft import hf, models
from jaxpeft.assembly.base import COMPANIONS, copy_files
from jaxpeft.errors import InputError
from jaxpeft.export.forms import new_folder, stored_dtype


def resized(model: str, tokenizer: str, out: str, dtype: str | None = None) -> str:
    """Writes a model with the tokenizer of another folder, and rows for its tokens.

    The model's own tokenizer is not looked at, which may be the larger one itself.

    Args:
        model: the model's folder or hub id.
        tokenizer: the folder or hub id of the tokenizer, with tokens added to it.
        out: the folder to write, absent or empty.
        dtype: of the weights; None: that of the model's folder.

    Returns:
        A line about the rows that were added.

    Raises:
        InputError: the embedding has a row for each token already, or the folders
            cannot be read or written.
    """
    target = new_folder(out)
    directory, source = hf.resolve(model), hf.resolve(tokenizer)
    cfg = models.config(directory)
    rows = hf.vocabulary_size(hf.load_tokenizer(source))
    if rows <= cfg.vocab_size:
        raise InputError(
            f"--tokenizer: {tokenizer!r} has {rows} tokens, and the model's embedding "
            f"{cfg.vocab_size} rows (config.json: vocab_size); it needs no more: copy "
            "the tokenizer's files into the model's folder"
        )
    params = hf.load(directory, cfg, dtype=dtype or stored_dtype(model))
    params, larger = models.resize_embeddings(params, cfg, rows, jax.random.key(0))
    hf.save(params, target, larger, base=directory)
    copy_files(source, target, hf.TOKENIZER_FILES)
    copy_files(directory, target, set(COMPANIONS) - set(hf.TOKENIZER_FILES))
    return (
        f"the embedding has {rows} rows, {rows - cfg.vocab_size} of them new: train "
        "them with adapter.trainable_token_indices or modules_to_save"
    )
