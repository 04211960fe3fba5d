"""Which files hold a model's tensors: one file, or shards listed by an index."""

import json
from collections.abc import Mapping
from pathlib import Path

from jaxpeft.errors import InputError
from jaxpeft.hf.safetensors_file import LARGEST_HEADER, SafetensorsFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensors(directory: Path) -> dict[str, SafetensorsFile]:
    """The tensors of a model's folder: {Hugging Face's name: the open file of each}.

    Reads `model.safetensors`, else the shards that `model.safetensors.index.json`
    names; other files are ignored.

    Args:
        directory: The model's folder.

    Raises:
        InputError: For missing or damaged files, a file outside the folder, and for
            weights that exist as pickles only, which are never opened.
    """
    if not directory.is_dir():
        raise InputError(
            f"model.path: {str(directory)!r} is not a folder; give a local folder in "
            "Hugging Face format"
        )
    if (directory / SINGLE).is_file():
        file = SafetensorsFile(contained(directory, SINGLE))
        return dict.fromkeys(file.tensors, file)
    if (directory / INDEX).is_file():
        return _shards(directory, _weight_map(contained(directory, INDEX)))
    raise InputError(_no_weights(directory))


def contained(directory: Path, name: str) -> Path:
    """The path of a file that a folder names as its own, symlinks resolved.

    The hub's cache keeps its snapshots (`models--*/snapshots/*`) as links into the
    model's `blobs` and the cache's, which count as inside.

    Args:
        directory: The model's folder.
        name: The file's name as the folder's own files give it.

    Raises:
        InputError: Where the file lies outside the folder.
    """
    root = directory.resolve()
    inside = [root]
    for folder in (root, *root.parents):
        if folder.name == "snapshots" and folder.parent.name.startswith("models--"):
            inside += [folder.parent / "blobs", folder.parent.parent / "blobs"]
    if "\0" not in name and not Path(name).is_absolute():
        path = (root / name).resolve()
        lexical = ".." not in Path(name).parts
        if lexical and any(path.is_relative_to(folder) for folder in inside):
            return path
    raise InputError(
        f"{directory}: the file {name!r} leads out of this folder; every file of a "
        "model must lie in its own folder, so copy it there"
    )


def _weight_map(path: Path) -> Mapping[str, str]:
    if path.stat().st_size > LARGEST_HEADER:
        raise InputError(f"{path}: larger than {LARGEST_HEADER} bytes; no real one is")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); restore the file"
        ) from None
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(f, str) and f.endswith(".safetensors") for f in files.values()
    ):
        raise InputError(
            f"{path}: `weight_map` must map each tensor to the name of a .safetensors "
            "file in the same folder; restore the file"
        )
    return files


def _shards(
    directory: Path, weight_map: Mapping[str, str]
) -> dict[str, SafetensorsFile]:
    names = sorted(set(weight_map.values()))
    paths = {name: contained(directory, name) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        raise InputError(
            *(
                f"{directory}: {name!r} is missing, though {INDEX} places "
                f"{sum(f == name for f in weight_map.values())} tensors in it; "
                "download the model again"
                for name in missing
            )
        )
    files = {name: SafetensorsFile(path) for name, path in paths.items()}
    absent = [t for t, f in weight_map.items() if t not in files[f].tensors]
    if absent:
        raise InputError(
            *(
                f"{directory}: {INDEX} places {tensor!r} in {weight_map[tensor]!r}, "
                "which does not hold it; download the model again"
                for tensor in absent[:10]
            )
        )
    sources = {tensor: files[name] for tensor, name in weight_map.items()}
    for file in files.values():
        for tensor in file.tensors:
            sources.setdefault(tensor, file)
    return sources


def _no_weights(directory: Path) -> str:
    pickles = sorted(p.name for p in directory.glob("*.bin"))
    pickles += sorted(
        p.name for p in (*directory.glob("*.pt"), *directory.glob("*.pth"))
    )
    if pickles:
        return (
            f"{directory}: holds {pickles[0]!r} and no safetensors; files of that kind "
            "can run code and are never opened. Convert the model once with "
            "transformers: AutoModelForCausalLM.from_pretrained(path)"
            ".save_pretrained(new_path, safe_serialization=True)"
        )
    others = sorted(p.name for p in directory.glob("*.safetensors"))
    hint = f" (found only {', '.join(others[:3])})" if others else ""
    return (
        f"{directory}: neither {SINGLE} nor {INDEX} is here{hint}; download the "
        "model's safetensors"
    )
