"""Where a model is: a local folder, or a copy of a Hugging Face repository."""

import re
from pathlib import Path

from jaxpeft.config import paths
from jaxpeft.errors import InputError
from jaxpeft.hf.tokenizer import PROCESSOR_FILES, TOKENIZER_FILES

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# What is downloaded: never pickles, never code.
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    *TOKENIZER_FILES,
    *PROCESSOR_FILES,
)
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
TIMEOUT = 5.0  # seconds for the hub to answer at all


def resolve(path_or_id: str | Path, *, weights: bool = True) -> Path:
    """The local folder of a model or adapter, downloaded first if it is a hub id.

    Args:
        path_or_id: A folder that exists is returned as it is; `org/name` is fetched
            into the hub's cache, or found there without a network; `jaxpeft:name` is
            a folder that ships with the package.
        weights: Whether they are downloaded too. A plan and a look at the data need
            only what lies beside them.

    Raises:
        InputError: Where it is neither a folder nor a reachable hub id, or has no
            weights where they are wanted.
    """
    text = paths.at_home(str(path_or_id))
    path = paths.find(text)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(
            f"model.path: {text!r} is a file; give the folder that holds config.json"
        )
    # `runs/model` where runs/ exists is a mistyped path: do not ask the hub for it.
    if not REPOSITORY.fullmatch(text) or Path(text).parent.is_dir():
        raise InputError(
            f"model.path: the folder {text!r} does not exist; give a local folder in "
            "Hugging Face format, or a hub id such as 'org/name'" + paths.remedy(text)
        )
    return _download(text, weights)


def _download(repository: str, weights: bool) -> Path:
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                repository,
                allow_patterns=[*FILES, *(WEIGHTS if weights else ())],
                ignore_patterns=["*/*"],
                etag_timeout=TIMEOUT,
            )
        )
    except Exception as error:
        # Besides OSErrors these are its HTTP library's, another one in each version.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"model.path: {repository!r} is neither a local folder nor a reachable hub "
            f"id ({reason[0][:300]}); check the spelling, the network and, for a gated "
            "model, `hf auth login`, or give a local folder (for `plan`, one with "
            "config.json alone, such as those in configs/shapes)"
        ) from error
    # Without a network the copy of a plan, which has none, is all that there is.
    if weights and not any(found for name in WEIGHTS for found in folder.glob(name)):
        raise InputError(
            f"model.path: {repository!r} has no safetensors, neither at the hub nor in "
            f"its copy {str(folder)!r}; if only its configuration was fetched so far, "
            "start once where the hub can be reached, and if it holds pickles alone, "
            "convert them with transformers (save_pretrained)"
        )
    return folder
