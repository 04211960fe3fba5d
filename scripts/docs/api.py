"""The pages of the API reference: a page a room, filled in from docstrings.

What a page shows is read from the source, and nothing is imported: the overview is made
here, and each `:::` line is a name that mkdocstrings writes out in full.
"""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

from shapes import escaped

PACKAGE = Path(__file__).parents[2] / "jaxpeft"
# The rooms of which the site has a page, with what follows the package's name there.
ROOMS = (
    "adapters",
    "optim",
    "optim.schedules",
    "models",
    "hf",
    "tree",
    "flax",
    "quant",
    "config",
    "objectives",
    "assembly",
)
# Modules that a room's own list does not reach and that are public all the same.
BESIDE = {
    "flax": ("flax.linen",),
    "objectives": ("objectives.token_loss", "objectives.evaluation"),
    "tree": ("kernel",),
}


@dataclass(frozen=True)
class Entry:
    """A public name of a room: where it stands, what it is, its first sentence."""

    path: str
    kind: str
    sentence: str

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


def source(module: str) -> Path:
    """The file of a module, whose name is given without the package's."""
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def parsed(module: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(source(module).read_text(encoding="utf-8"))


def defined(module: str) -> dict[str, Entry]:
    """{name: entry} of the functions and classes that a module defines for others."""
    entries = {}
    for node in parsed(module).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        doc = ast.get_docstring(node)
        if doc and not node.name.startswith("_"):
            kind = "Classes" if isinstance(node, ast.ClassDef) else "Functions"
            sentence = " ".join(doc.partition("\n\n")[0].split())
            path = f"jaxpeft.{module}.{node.name}"
            entries[node.name] = Entry(path, kind, sentence)
    return entries


def imported(module: str) -> dict[str, tuple[str, str]]:
    """{name: (module, its name there)} of what a module takes from the package."""
    names = {}
    for node in parsed(module).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            package, _, origin = node.module.partition(".")
            if package == PACKAGE.name and origin:
                for alias in node.names:
                    names[alias.asname or alias.name] = (origin, alias.name)
    return names


def looked_up(module: str, name: str) -> Entry | None:
    """The function or class that a name of a module means, in the file defining it.

    None for anything else. A function is often called like its file, and the name that
    a package gives to both would lead to the file.
    """
    if name in defined(module):
        return defined(module)[name]
    origin, there = imported(module).get(name, (module, name))
    # A room imports its own files by name: `from jaxpeft.optim import schedules`.
    return None if origin == module else looked_up(origin, there)


def listed(room: str) -> list[Entry] | None:
    """What a room lists in `__all__`, its own functions first; None without a list."""
    for node in parsed(room).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            break
    else:
        return None
    own = defined(room)
    names = sorted(names, key=lambda name: name not in own)
    return [entry for name in names if (entry := looked_up(room, name)) is not None]


def overview(entries: list[Entry]) -> list[str]:
    """A list of the functions, then of the classes, each with its first sentence."""
    lines = []
    for kind in ("Functions", "Classes"):
        chosen = [entry for entry in entries if entry.kind == kind]
        if chosen:
            lines += [f"**{kind}**", ""]
            lines += [
                f"- [`{e.name}`](#{e.path}): {escaped(e.sentence)}" for e in chosen
            ]
            lines += [""]
    return lines


def details(entries: list[Entry], level: int) -> list[str]:
    """The lines that mkdocstrings fills in, functions first."""
    lines = []
    for entry in sorted(entries, key=lambda entry: entry.kind == "Classes"):
        lines += [f"::: {entry.path}", "    options:", f"      heading_level: {level}"]
        lines += [""]
    return lines


def page(room: str) -> str:
    """The page of a room: what it is for, an overview, and every name in full.

    A room that lists no names is shown by its modules, one after the other.
    """
    lines = [
        f"# jaxpeft.{room}",
        "",
        escaped(ast.get_docstring(parsed(room)) or ""),
        "",
    ]
    entries = listed(room)
    modules = list(BESIDE.get(room, ()))
    if entries is not None:
        lines += overview(entries) + details(entries, 2)
    else:
        own = defined(room)
        lines += overview(list(own.values())) + details(list(own.values()), 2)
        if source(room).name == "__init__.py":
            files = sorted(source(room).parent.glob("[!_]*.py"))
            modules = [f"{room}.{file.stem}" for file in files]
    for module in modules:
        entries = list(defined(module).values())
        doc = escaped(ast.get_docstring(parsed(module)) or "")
        lines += [f"## jaxpeft.{module}", "", doc, ""]
        lines += overview(entries) + details(entries, 3)
    return "\n".join(lines)
