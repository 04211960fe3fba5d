"""Imports point downward only, and nothing in the package can run foreign code."""

import ast
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jaxpeft"

# The storeys of the house, lowest first. A room (a folder, or a file of the package's
# own) imports from the storeys below its own alone, never from its neighbours.
STOREYS = (
    # foundations, used everywhere
    ("errors", "console", "caches", "tree", "hardware"),
    ("kernel", "replacing", "config", "devices"),
    # libraries
    ("adapters", "models", "quant", "data", "rundir", "metrics", "cli"),
    ("hf", "optim", "objectives"),
    ("flax", "assembly"),
    # commands
    ("lr_find", "plan", "diagnose", "generate", "export", "convert_config", "cache")
    + ("doctor",),
    ("report", "chat", "combine", "evaluate"),
    ("train", "look", "compare"),
    ("sweep",),
    ("board", "__main__"),
)
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}

# A file that starts a process stands above all of them. So the command `data` has the
# name of a library, and another room.
START = "__main__"

# They run code that stands in a file, or are the reference that we do without.
BANNED = {"torch", "pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}


def modules() -> dict[str, Path]:
    """{dotted name: file}; a package's own file is the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


MODULES = modules()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, functions and type checks included."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)


def room(name: str) -> str:
    """The folder or file directly under jaxpeft that a module belongs to."""
    return name.split(".")[1]


def test_every_room_has_its_storey():
    found = {room(name) for name in MODULES if "." in name}
    assert found - set(LEVEL) == set(), "give these a place in STOREYS"
    assert set(LEVEL) - found == set(), "these are gone"


def test_the_page_on_architecture_shows_these_storeys():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown: list[set[str]] = []
    for line in page.split("## Layout")[1].split("```")[1].splitlines():
        if line[:1].isdigit():
            assert line.startswith(f"{len(shown) + 1} "), line
            shown.append(set())
        if line[3:4].strip():  # further in stands what a room is for
            names = re.split(r"\s{2,}", line[3:])[0]
            shown[-1].update(re.findall(r"\w+", names))
    assert shown == [set(names) - {"__main__"} for names in STOREYS]


def test_imports_point_downward():
    for name in MODULES:
        if "." not in name:
            continue
        own = room(name)
        storey = len(STOREYS) if name.endswith(f".{START}") else LEVEL.get(own, -1)
        for other in imported(MODULES[name]):
            if not other.startswith("jaxpeft.") or room(other) == own:
                continue
            assert not other.endswith(f".{START}"), f"{name} imports {other}"
            below, above = LEVEL.get(room(other), 99), storey
            assert below < above, f"{name} imports {other}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        name: {other for other in imported(path) if other in MODULES} - {"jaxpeft"}
        for name, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_the_package_itself_imports_nothing():
    assert not list(imported(PACKAGE / "__init__.py"))


def calls():
    """(where it stands, the call) for every call in the package."""
    for name, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", node


def test_nothing_runs_foreign_code():
    for name, path in MODULES.items():
        roots = {module.split(".")[0] for module in imported(path)}
        assert not roots & BANNED, name
    for where, node in calls():
        called = node.func
        if isinstance(called, ast.Name):
            assert called.id not in {"eval", "exec", "__import__"}, where
        if isinstance(called, ast.Attribute):
            assert called.attr not in {"system", "popen"}, where
        for keyword in node.keywords:
            unsafe = keyword.arg in {"shell", "allow_pickle", "trust_remote_code"}
            is_false = ast.unparse(keyword.value) == "False"
            assert not unsafe or is_false, f"{where}: {keyword.arg}"


def test_files_and_functions_stay_short():
    """At most 400 lines a file, and 60 a function, its docstring apart."""
    for name, path in MODULES.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, name
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if ast.get_docstring(node, clean=False) is not None:
                    told = node.body[0]
                    lines -= (told.end_lineno or 0) - told.lineno + 1
                assert lines <= 60, f"{name}.{node.name}: {lines} lines"
