"""The pages that are made from the code are those that the code makes."""

import importlib.util
import itertools
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxpeft import optim, tree

ROOT = Path(__file__).parents[1]


def test_the_configuration_page_is_current():
    path = ROOT / "scripts" / "make_config_docs.py"
    spec = importlib.util.spec_from_file_location("make_config_docs", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == module.text(), "run python scripts/make_config_docs.py"


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


def table(page: str, start: str) -> list[list[str]]:
    """The cells of the rows of the table whose header starts so."""
    lines = (ROOT / "docs" / page).read_text().split(f"\n| {start} |")[1].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[2:])
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_bytes_of_every_optimizer_s_state_are_as_stated():
    name = "model.layers.mlp.up_proj.kernel"
    params = {name: jax.ShapeDtypeStruct((1, 4096, 4096), jnp.float32)}
    constant = {"name": "constant"}
    stated = {
        row[0].strip("`"): row[1] for row in table("optimizers.md", "name | state")
    }
    assert set(stated) == set(optim.OPTIMIZERS.entries)
    for name, figure in stated.items():
        section = {"name": name, "learning_rate": 1e-3, "max_grad_norm": None}
        state = jax.eval_shape(optim.make(section, constant, 10).init, params)
        assert f"{tree.nbytes(state) / 4096**2:.3f}" == figure, name


def test_every_alias_is_on_the_page():
    page = (ROOT / "docs" / "optimizers.md").read_text()
    assert [name for name in optim.OPTIMIZERS.aliases if f"`{name}`" not in page] == []


def test_every_schedule_is_on_the_page():
    cells = [row[0] for row in table("optimizers.md", "name | own keys")]
    stated = {name.strip("`") for cell in cells for name in cell.split(", ")}
    assert stated == set(optim.SCHEDULES.entries)


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
