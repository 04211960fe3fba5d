"""Data files -> rows, a part at a time: json, jsonl, csv, txt and parquet, strictly.

Whatever cannot be read exactly is refused with `file:line`; nothing is repaired or
skipped in silence.
"""

from jaxpeft.data.sources.files import found
from jaxpeft.data.sources.part import Part, Row
from jaxpeft.data.sources.reading import parts, read

__all__ = ["Part", "Row", "found", "parts", "read"]
