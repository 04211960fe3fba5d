"""Sources -> rows, a part at a time: files, folders and data sets of the hub, strictly.

Whatever cannot be read exactly is refused with `file:line`; nothing is repaired or
skipped in silence.
"""

from jaxpeft.data.sources.files import found, passed_over
from jaxpeft.data.sources.part import Part, Row
from jaxpeft.data.sources.reading import identity, parts, read
from jaxpeft.data.sources.source import Source, source_of

__all__ = [
    "Part",
    "Row",
    "Source",
    "found",
    "identity",
    "parts",
    "passed_over",
    "read",
    "source_of",
]
