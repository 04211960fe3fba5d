"""What tells one set of weights from another, without reading them all."""

import hashlib
from pathlib import Path

from jaxpeft.hf import checkpoint_index

SAMPLE = 64 * 1024  # bytes read at either end of each file


def fingerprint(directory: str | Path) -> str:
    """A digest over `config.json` and each weight file's size, header and ends.

    It changes with the architecture, the tensors and, in practice, with any training; a
    change in the middle of a file alone escapes it.

    Args:
        directory: The model's folder.

    Returns:
        A blake2b digest of 16 bytes, hexadecimal.

    Raises:
        InputError: Where the folder's weights are missing or damaged.
    """
    directory = Path(directory)
    digest = hashlib.blake2b((directory / "config.json").read_bytes(), digest_size=16)
    files = {source.path for source in checkpoint_index.tensors(directory).values()}
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(SAMPLE))
            file.seek(max(0, size - SAMPLE))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
