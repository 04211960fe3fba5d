"""What a text that names a file or a folder means: `~`, and what the package ships.

A text that begins with `jaxpeft:` names a file or a folder that comes with the package,
such as `jaxpeft:tiny-llama`, wherever the package and the current folder are.
"""

import os
from pathlib import Path

from jaxpeft.errors import InputError, suggest

SHIPPED = "jaxpeft:"
ASSETS = Path(__file__).parents[1] / "assets"


def at_home(text: str) -> str:
    """The text with the home folder in place of `~` or `~name` at its beginning.

    Args:
        text: a path, a hub id or a name of what ships.

    Raises:
        InputError: there is no user of that name.
    """
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        name = text.split("/")[0]
        raise InputError(
            f"found {text!r}; {name} is nobody's home folder: write ./{text} for what "
            "is called so"
        )
    return expanded


def find(text: str | Path) -> Path:
    """The path that a text means: of what ships, the place where it is installed.

    Args:
        text: a path, or `jaxpeft:` and the name of what ships.

    Raises:
        InputError: nothing of that name ships.
    """
    if not is_shipped(text):
        return Path(text)
    name = str(text).removeprefix(SHIPPED)
    if name not in shipped():
        raise InputError(
            f"{text}: nothing of this name comes with jaxpeft"
            + suggest(str(text), [SHIPPED + known for known in shipped()])
        )
    return ASSETS / name


def is_shipped(text: str | Path) -> bool:
    """Whether a text names what ships, and no path.

    Args:
        text: what was given for a path.
    """
    return str(text).startswith(SHIPPED)


def remedy(text: str | Path) -> str:
    """A tail for the message about a missing file, where one of its name ships.

    Args:
        text: the path that was given.
    """
    words = Path(text).parts
    for name in shipped():
        own = Path(name).parts
        if words[-len(own) :] == own:
            return f"; {SHIPPED}{name} comes with jaxpeft and is found from anywhere"
    return ""


def shipped() -> list[str]:
    """The names of the files and folders that ship, such as `weather/train.json`."""
    found = sorted(ASSETS.rglob("*"))
    return [path.relative_to(ASSETS).as_posix() for path in found]
