"""A model's own tokenizer, from its folder; neither code nor the network is used."""

import json
import os
from pathlib import Path
from typing import Any

from jaxpeft.errors import InputError
from jaxpeft.models.spec import ModelConfig

# All that a tokenizer can consist of, its chat template included.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
# How images become a model's input: of no use here, and a part of a model that sees.
PROCESSOR_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
# Any one of these is enough to build a tokenizer from.
SOURCES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
# With these classes tokenizer.json says everything, and AutoTokenizer would choose the
# same class, but only after importing torch where it is installed (1.5 s). For some
# model types AutoTokenizer overrules the folder, hence the second list.
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
NOT_OVERRULED = ("llama",)


def load_tokenizer(path: str | Path) -> Any:
    """The transformers tokenizer in a model's folder, as AutoTokenizer loads it.

    Code beside the tokenizer (`auto_map`) is never imported.

    Args:
        path: The model's folder.

    Raises:
        InputError: Where the tokenizer's files are missing or cannot be read.
    """
    directory = Path(path)
    if not any((directory / name).is_file() for name in SOURCES):
        raise InputError(
            f"model.path: {str(directory)!r} holds no tokenizer "
            f"({', '.join(SOURCES)}); copy the files of the model's own into it"
        )
    # Read when transformers is first imported: without it, it remarks on missing torch.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return _class(directory).from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # tokenizers raises plain Exceptions for whatever is wrong in its files.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"model.path: the tokenizer in {str(directory)!r} cannot be loaded "
            f"({reason[0][:300]}); restore its files, or write a tokenizer.json once "
            "with transformers: "
            "AutoTokenizer.from_pretrained(path).save_pretrained(path)"
        ) from error


def check_vocab(tokenizer: Any, cfg: ModelConfig) -> None:
    """Checks that the embedding has a row for each of the tokenizer's tokens.

    An embedding with rows to spare is fine: many are padded to a round number.

    Args:
        tokenizer: The tokenizer, of transformers.
        cfg: The model's configuration.

    Raises:
        InputError: Where the tokenizer has tokens that the embedding lacks.
    """
    needed = vocabulary_size(tokenizer)
    if needed > cfg.vocab_size:
        raise InputError(
            f"model.path: the tokenizer has {needed} tokens, the model's embedding "
            f"only {cfg.vocab_size} rows (config.json: vocab_size); use the tokenizer "
            "that belongs to the model, or give tokens that were added to it rows: "
            "jaxpeft export --to merged --model MODEL --tokenizer TOKENIZER --out NEW, "
            "and NEW as model.path"
        )


def vocabulary_size(tokenizer: Any) -> int:
    """How many rows a tokenizer needs: one more than the largest of its tokens' ids.

    Args:
        tokenizer: The tokenizer, of transformers.
    """
    largest = max(tokenizer.get_vocab().values(), default=-1)
    return max(len(tokenizer), largest + 1)


def _class(directory: Path) -> Any:
    settings = _json(directory / "tokenizer_config.json")
    if (
        (directory / "tokenizer.json").is_file()
        and settings.get("tokenizer_class") in GENERIC_CLASSES
        and _json(directory / "config.json").get("model_type") in NOT_OVERRULED
    ):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
