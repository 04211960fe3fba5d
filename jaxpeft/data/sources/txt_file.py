"""Text files: documents between blank lines, or a document a line."""

from collections.abc import Iterator

from jaxpeft.data.sources.opened import decoded, opened
from jaxpeft.data.sources.part import Part, Row, batched

_BOM = b"\xef\xbb\xbf"


def read(path: str) -> Iterator[Part]:
    """The documents of a text file: blocks between blank lines, or all its lines.

    They are its lines where no blank line stands between two others.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    blocks = _has_blocks(path)
    with opened(path) as source:
        documents = _blocks(path, source.file) if blocks else _lines(path, source.file)
        rows = (
            (len(document), Row(document, f"{path} (document {number})"))
            for number, document in enumerate(documents, 1)
        )
        yield from batched(rows, source.done)


def _has_blocks(path: str) -> bool:
    """Whether a blank line stands between two that are not."""
    begun = parted = False
    with opened(path) as source:
        for line in source.file:
            if line.strip(b" \t\r\n"):
                if parted:
                    return True
                begun = True
            else:
                parted = begun
    return False


def _lines(path: str, file) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        raw = line.removeprefix(_BOM) if number == 1 else line
        text = decoded(raw, path, number).removesuffix("\n").removesuffix("\r")
        if text.strip():
            yield text


def _blocks(path: str, file) -> Iterator[str]:
    block: list[str] = []
    for number, line in enumerate(file, 1):
        raw = line.removeprefix(_BOM) if number == 1 else line
        text = decoded(raw, path, number).removesuffix("\n").removesuffix("\r")
        if text.strip(" \t"):
            block.append(text)
        elif block:
            yield "\n".join(block)
            block = []
    if block:
        yield "\n".join(block)
