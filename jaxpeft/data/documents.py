"""Plain documents -> token ids, as the tokenizer begins and ends them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[int]]:
    """The token ids of texts, with what the tokenizer itself puts around them.

    A text that begins with the beginning-of-sequence token, or ends with that of the
    end, as it was copied out of a rendered conversation, does not get a second one.

    Args:
        texts: the documents.
        tokenizer: the model's tokenizer.
    """
    around: Any = tokenizer("")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded: Any = tokenizer(list(texts), return_attention_mask=False, verbose=False)
    documents = []
    for ids in encoded["input_ids"]:
        if around[:1] == [bos] and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if around[-1:] == [eos] and ids[-2:] == [eos, eos]:
            ids = ids[:-1]
        documents.append(ids)
    return documents
