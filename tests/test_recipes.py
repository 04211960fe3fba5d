"""The recipes in configs/ hold, and say what the table of docs/recipes.md says."""

import functools
import re
from pathlib import Path

import plan_recipes
import pytest

from jaxpeft import models, tree
from jaxpeft.assembly import configuration, updates
from jaxpeft.config import paths

ROOT = Path(__file__).parents[1]
STEPS = 1000


RECIPES = plan_recipes.recipes()
# Parameters of the published checkpoints, as the hub counts them; Gemma's text part.
PUBLISHED = {
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.1-8B": 8_030_261_248,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
    "Gemma-3-4B": 3_880_263_168,
    "Mistral-7B": 7_248_023_552,
}


def test_every_model_is_there_in_every_way():
    ways = {"lora", "qlora", "full_adamw_8bit", "full_adalomo"}
    small = {"llama-3.2-1b", "qwen2.5-0.5b"}  # they fit as they are
    preferences = {"llama-3.1-8b", "qwen3-8b"}
    for model in plan_recipes.SHAPES:
        found = {
            n.partition("_")[2] for n in RECIPES if plan_recipes.model_of(n) == model
        }
        expected = ways - {"qlora"} if model in small else ways
        if model in preferences:
            expected = expected | {"dpo_lora", "dpo_qlora"}
        assert found == expected, model


@pytest.mark.parametrize("shape", PUBLISHED)
def test_shapes_have_the_parameters_of_the_published_models(shape):
    assert shape in plan_recipes.SHAPES.values()
    cfg = models.config(ROOT / "configs" / "shapes" / shape)
    assert tree.count(models.shapes(cfg, "bfloat16")) == PUBLISHED[shape]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = ROOT / "configs" / f"{name}.yaml"
    cfg = configuration.open_config(path)
    updates.updates(cfg, STEPS)
    assert cfg.output_dir == f"runs/{name}"
    assert paths.find(cfg.data.train[0].path).is_file()
    lines = path.read_text().splitlines()
    command = f"# Command:  python -m jaxpeft.train --config configs/{name}.yaml"
    assert lines[0] == command
    stated = re.fullmatch(r"# Hardware: one GPU of (\d+) GB", lines[1])
    figure = re.match(
        r"# Expected: ([\d.]+) GiB at the fullest moment, ([\d.]+)", lines[2]
    )
    assert stated and figure
    cells = row(name)
    assert (cells[-1], cells[-2]) == (f"{stated[1]} GB", figure[1])
    assert cells[2] == figure[2]
    assert plan_recipes.gpu(float(figure[1]) * plan_recipes.GIB) == int(stated[1])


def row(name):
    """The cells of a recipe's row in the table."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    (line,) = [text for text in page.splitlines() if text.startswith(f"| [`{name}`]")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", [n for n in RECIPES if n.endswith("lora")])
def test_what_trains_is_as_stated(name):
    """The trainable count of the table, from shapes alone."""
    cfg = configuration.open_config(ROOT / "configs" / f"{name}.yaml")
    model = models.config(
        ROOT / "configs" / "shapes" / plan_recipes.SHAPES[plan_recipes.model_of(name)]
    )
    rank = cfg.adapter.options["r"]
    specs = models.shapes(model, "bfloat16")
    linear = [
        leaf.shape for path, leaf in tree.walk(specs) if path.endswith("proj.kernel")
    ]
    assert len(linear) == 7
    by_hand = sum(layers * rank * (i + o) for layers, i, o in linear)
    assert row(name)[1] == f"{by_hand:,}"


@pytest.mark.slow
def test_a_tiny_model_is_planned_as_the_script_plans(tmp_path, monkeypatch):
    """One whole pass: the command, the recipe's lines, and the page."""
    folder = tmp_path / "configs"
    (folder / "shapes").mkdir(parents=True)
    source = ROOT / "configs" / "qwen2.5-0.5b_lora.yaml"
    text = source.read_text().replace("max_length: 2048", "max_length: 64")
    (folder / "tiny_lora.yaml").write_text(text)
    tiny = ROOT / "jaxpeft" / "assets" / "tiny-llama"
    (folder / "shapes" / "Tiny").symlink_to(tiny)
    page = tmp_path / "recipes.md"
    page.write_text(f"# Recipes\n\n{plan_recipes.HEAD}\n|---|\n\nThe end.\n")
    monkeypatch.setattr(plan_recipes, "CONFIGS", folder)
    monkeypatch.setattr(plan_recipes, "PAGE", page)
    monkeypatch.setattr(plan_recipes, "SHAPES", {"tiny": "Tiny"})
    once = functools.cache(plan_recipes.planned)
    monkeypatch.setattr(plan_recipes, "planned", once)
    assert plan_recipes.main(["--check", "tiny_lora"]) == 1
    assert plan_recipes.main(["tiny_lora"]) == 0
    assert plan_recipes.main(["--check", "tiny_lora"]) == 0
    assert page.read_text().count("`tiny_lora`") == 1
    assert page.read_text().endswith("\n\nThe end.\n")
    weights = tree.nbytes(models.shapes(models.config(tiny), "bfloat16"))
    assert f"| {weights / plan_recipes.GIB:.2f} |" in page.read_text()
