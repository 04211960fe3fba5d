"""The pages that are made from the code are those that the code makes."""

import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import re
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import yaml
from packaging.requirements import Requirement

from jaxpeft import optim, tree
from jaxpeft.assembly import configuration

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *DOCS,
]


def test_the_configuration_page_is_current():
    path = ROOT / "scripts" / "make_config_docs.py"
    spec = importlib.util.spec_from_file_location("make_config_docs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == module.text(), "run python scripts/make_config_docs.py"


@pytest.mark.slow
def test_the_code_for_any_flax_model_runs(tmp_path, monkeypatch):
    """All of the page, as one module: Linen reads the annotations of its classes."""
    page = (ROOT / "docs" / "any_flax_model.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    path = tmp_path / "any_flax_model.py"
    path.write_text("\n".join(blocks))
    spec = importlib.util.spec_from_file_location("any_flax_model", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "any_flax_model", module)
    spec.loader.exec_module(module)


def test_the_readme_s_configuration_is_one(tmp_path):
    [block] = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    path = tmp_path / "run.yaml"
    path.write_text(block)
    cfg = configuration.open_config(path, ["data.max_length=512"])
    assert cfg.adapter.options["r"] == 16 and cfg.data.max_length == 512


def test_the_readme_s_optimizer_goes_into_a_chain():
    code = (ROOT / "README.md").read_text().split("```python\nimport optax\n")[1]
    names: dict = {}
    exec("import optax\n" + code.split("```")[0], names)
    params = {"kernel": jnp.ones((64, 64))}
    updates, _ = names["tx"].update(params, names["tx"].init(params), params)
    assert float(updates["kernel"].max()) < 0


def table(page: str, start: str) -> list[list[str]]:
    """The cells of the rows of the table whose header starts so."""
    lines = (ROOT / "docs" / page).read_text().split(f"\n| {start} |")[1].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[2:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_bytes_of_every_optimizer_s_state_are_as_stated():
    name = "model.layers.mlp.up_proj.kernel"
    kernel = {name: jax.ShapeDtypeStruct((1, 4096, 4096), jnp.float32)}
    shapes = {"a": (1, 4096, 16), "b": (1, 16, 4096)}
    factors = {
        f"{name}.{key}": jax.ShapeDtypeStruct(shape, jnp.float32)
        for key, shape in shapes.items()
    }
    constant = {"name": "constant"}
    stated = {
        row[0].strip("`"): row[1] for row in table("optimizers.md", "name | state")
    }
    assert set(stated) == set(optim.OPTIMIZERS.entries)
    for name, figure in stated.items():
        section = {"name": name, "learning_rate": 1e-3, "max_grad_norm": None}
        params = factors if optim.OPTIMIZERS[name].factors else kernel
        state = jax.eval_shape(optim.make(section, constant, 10).init, params)
        assert f"{tree.nbytes(state) / tree.count(params):.3f}" == figure, name


def test_every_alias_is_on_the_page():
    page = (ROOT / "docs" / "optimizers.md").read_text()
    assert [name for name in optim.OPTIMIZERS.aliases if f"`{name}`" not in page] == []


def test_every_schedule_is_on_the_page():
    cells = [row[0] for row in table("optimizers.md", "name | own keys")]
    stated = {name.strip("`") for cell in cells for name in cell.split(", ")}
    assert stated == set(optim.SCHEDULES.entries)


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_pages_name_exist(page):
    """Tests, scripts, configurations, the package; NAME stands for a new file."""
    named = re.findall(
        r"(?<![\w/.-])(?:tests|scripts|configs|docs|jaxpeft)/[\w./-]*\w",
        page.read_text(),
    )
    named = {name for name in named if "NAME" not in name}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_modules_that_pages_name_exist(page):
    named = set(re.findall(r"\bjaxpeft(?:\.[A-Za-z_]\w*)+", page.read_text()))
    for name in sorted(named - {"jaxpeft.NAME"}):
        pkgutil.resolve_name(name)  # raises where there is none


def test_every_page_is_in_the_navigation_of_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def pages(entry):
        if isinstance(entry, str):
            return {entry}
        below = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(pages, below))

    docs = {path.relative_to(ROOT / "docs").as_posix() for path in DOCS}
    top = {"index.md", "contributing.md", "changelog.md"}
    api = {name for name in pages(nav) if name.startswith("api/")}
    assert pages(nav) - api == docs | top


def test_the_site_s_tools_have_one_version_each_that_the_extra_allows():
    lines = (ROOT / "constraints" / "docs.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["optional-dependencies"]["docs"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name]), text


@pytest.fixture
def site_scripts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "docs")
    yield
    for name in ("api", "check", "pages", "shapes"):
        sys.modules.pop(name, None)


def test_the_reference_has_every_public_name(site_scripts):
    """Each once, by the file that defines it, with what stands in its docstring."""
    api = importlib.import_module("api")
    for room in ("adapters", "optim", "optim.schedules", "models", "hf", "quant"):
        module = importlib.import_module(f"jaxpeft.{room}")
        shown = re.findall(r"^::: (\S+)$", api.page(room), re.MULTILINE)
        documented = {
            name
            for name in module.__all__
            if inspect.isroutine(getattr(module, name))
            or inspect.isclass(getattr(module, name))
        }
        assert {name.rpartition(".")[2] for name in shown} == documented, room
        assert len(shown) == len(documented), room
        for path in shown:
            name = path.rpartition(".")[2]
            # The package's name may mean a file; the module itself is in sys.modules.
            there = sys.modules[path.rpartition(".")[0]]
            assert getattr(there, name) is getattr(module, name)


def test_shapes_in_docstrings_are_not_taken_for_emphasis(site_scripts):
    shapes = importlib.import_module("shapes")
    text = "a: (*layers, d_in), `(*layers,)` and **bold**; b * c"
    assert shapes.escaped(text) == text.replace("a: (*", "a: (\\*")


def test_links_out_of_the_docs_lead_to_pages_of_the_site(site_scripts, tmp_path):
    site = importlib.import_module("pages").Site(tmp_path)
    site.add(ROOT / "docs" / "recipes.md", "recipes.md")
    site.add_files()
    page = (tmp_path / "recipes.md").read_text()
    assert "](guide.md)" in page and "](../" not in page
    name = "configs/llama-3.2-1b_lora.yaml"
    assert f"](files/{name}.md)" in page
    copied = (tmp_path / "files" / f"{name}.md").read_text()
    assert (ROOT / name).read_text().rstrip() in copied


def test_the_check_of_the_site_finds_what_is_broken(site_scripts, tmp_path):
    check = importlib.import_module("check")
    (tmp_path / "there.html").write_text('<h2 id="place">Here</h2>')
    whole = '<a href="there.html#place">to</a><a href="https://a.example/">out</a>'
    (tmp_path / "index.html").write_text(whole)
    assert check.problems(tmp_path) == []
    broken = (
        '<a href="there.html#nowhere"></a><a href="gone.html"></a><img src="none.png">'
        '<script src="https://a.example/x.js"></script>'
    )
    (tmp_path / "index.html").write_text(broken)
    (tmp_path / "lost.html").write_text("")
    found = check.problems(tmp_path)
    words = ("#nowhere", "gone.html", "none.png", "another server", "lost.html")
    assert len(found) == len(words)
    for word in words:
        assert any(word in line for line in found), word
