"""What griffe does to every docstring that it reads for the reference: `mkdocs.yml`."""

from typing import Any

import griffe
from shapes import escaped


class Shapes(griffe.Extension):
    """Escapes the shapes in the docstring of every object that is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
