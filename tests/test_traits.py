"""What is special about a component stands in its table, and nobody asks for names."""

import ast
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxpeft import adapters, optim
from jaxpeft.assembly.configuration import TABLES

PACKAGE = Path(__file__).parent.parent / "jaxpeft"
NAMES = {name for table in TABLES.values() for name in (*table.rows, *table.aliases)}
# (file, line of code): what looks like a component's name there and is none.
OTHERS = {
    ("convert_config/llamafactory.py", "kind == 'lora'"): "its finetuning_type",
    ("convert_config/llamafactory.py", "inner == 'adafactor'"): "its optim",
    (
        "models/hf_rope.py",
        "kind in ('default', 'linear', 'dynamic')",
    ): "a rope's kind",
    ("models/rope.py", "rope.kind == 'linear'"): "a rope's kind",
    ("optim/schedules/stable.py", "form == 'cosine'"): "a warmup's or a decay's form",
    ("rundir/sinks.py", "key != 'step'"): "a line's step",
    ("plan/loops.py", "one.opcode == 'constant'"): "an operation of XLA's",
    ("plan/planning.py", "cfg.model.remat != 'full'"): "what is computed again",
    ("plan/longest.py", "cfg.model.remat != 'full'"): "what is computed again",
}


def literals(node: ast.expr) -> Iterator[str]:
    """The texts in a comparison's side: itself, or the items of what it lists."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for item in node.elts:
            yield from literals(item)
    elif isinstance(node, ast.Dict):
        for item in filter(None, node.keys):
            yield from literals(item)


def comparisons(source: str) -> Iterator[str]:
    """The comparisons of a file, and its `match` cases, that hold a component's name.

    Prefixes count too: `name.startswith("schedule_free")` is a test of a name.
    """
    for node in ast.walk(ast.parse(source)):
        found: list[str] = []
        if isinstance(node, ast.Compare):
            found = [
                t for side in (node.left, *node.comparators) for t in literals(side)
            ]
        elif isinstance(node, ast.MatchValue):
            found = list(literals(node.value))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            begins = [t for side in node.args for t in literals(side) if len(t) > 3]
            asks = node.func.attr == "startswith"
            found = [n for n in NAMES for t in begins if asks and n.startswith(t)]
        if NAMES & set(found):
            yield ast.unparse(node)


@pytest.mark.slow
def test_no_code_compares_a_component_s_name():
    found = {
        (str(path.relative_to(PACKAGE)), code)
        for path in sorted(PACKAGE.rglob("*.py"))
        for code in comparisons(path.read_text(encoding="utf-8"))
    }
    assert found - set(OTHERS) == set(), "ask the component's line in its table"
    assert set(OTHERS) - found == set(), "these are gone"


@pytest.mark.parametrize(
    "code",
    [
        "cfg.optimizer.name == 'prodigy'",
        "name in ('lomo', 'other')",
        "'full' != method",
        "name.startswith('schedule_free')",
        "match name:\n    case 'greedy':\n        pass",
    ],
)
def test_a_comparison_is_seen(code):
    assert list(comparisons(code))


PARAMS = {"layers.w.a": jnp.ones((2, 8, 4)), "layers.w.b": jnp.ones((2, 4, 8))}


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_the_traits_of_an_optimizer_are_true_of_it(name):
    row = optim.OPTIMIZERS[name]
    section = {"name": name, "learning_rate": 0.5, "max_grad_norm": None}
    section |= {"rank": 2} if "rank" in optim.OPTIMIZERS.keys(name) else {}
    parts = optim.make_parts(section, {"name": "constant"}, 4)
    assert row.leafwise == (parts.leafwise is not None)
    assert row.leafwise or not row.fused
    tx = parts.chain()
    state = tx.init(PARAMS)
    grads = jax.tree.map(lambda p: 0.1 * p, PARAMS)
    update = jax.jit(tx.update)
    for _ in range(2):
        _, state = update(grads, state, PARAMS)
    moved = jax.tree.map(lambda p: p + 1, PARAMS)  # where no average is
    seen = optim.evaluation_params(state, moved)
    others = [a is not b for a, b in zip(*map(jax.tree.leaves, (seen, moved)))]
    assert row.averages == any(others)
    assert row.lighter is None or row.lighter in optim.OPTIMIZERS.rows


def test_a_lighter_optimizer_has_less_state():
    params = {"layers.w": jax.ShapeDtypeStruct((1, 512, 512), jnp.float32)}

    def size(name: str) -> int:
        made = optim.make({"name": name}, {"name": "constant"}, 4)
        leaves = jax.tree.leaves(jax.eval_shape(made.init, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    rows = optim.OPTIMIZERS.rows.items()
    lighter = {name: row.lighter for name, row in rows if row.lighter}
    assert lighter and all(size(other) < size(name) for name, other in lighter.items())


@pytest.mark.parametrize("name", list(optim.SCHEDULES))
def test_the_traits_of_a_schedule_are_true_of_it(name):
    row = optim.SCHEDULES[name]
    own = {"decay_steps": 2} if name == "warmup_stable_decay" else {}
    own |= {"step_size": 2} if "step_size" in optim.SCHEDULES.keys(name) else {}
    own |= {"min_lr": 0.01} if "min_lr" in optim.SCHEDULES.keys(name) else {}
    section = {"name": name, "warmup_steps": 2, **own}
    rate = optim.make_schedule(0.5, section, 20)
    stays = float(rate(3)) == float(rate(11)) == float(rate(20)) == 0.5
    assert (row.level or row.scale is not None) == stays
    parts = optim.make_parts({"name": "adamw", "learning_rate": 0.5}, section, 20)
    observes = optim.observes(parts.chain().init(PARAMS))
    assert (row.scale is not None) == observes


@pytest.mark.parametrize("name", list(adapters.TABLE))
def test_the_traits_of_a_method_are_true_of_it(name):
    parameters = adapters.TABLE.parameters(name)
    row = adapters.TABLE[name]
    assert row.wraps == ("base" in parameters) != ("params" in parameters)
    assert (name in adapters.METHODS) == row.wraps
    assert set(row.heeds) <= set(adapters.COMMON)
    # PEFT has tokens and tying for what it saves as a LoRA alone.
    of_lora = {"trainable_token_indices", "ensure_weight_tying"}
    is_lora = "lora_alpha" in parameters
    wanted = set(adapters.COMMON) - (set() if is_lora else of_lora)
    assert not row.wraps or set(row.heeds) == wanted
    if row.flax:  # Flax modules hold a LoRA without its base
        node = row.make(jnp.zeros((8, 4)), jax.random.key(0), r=2)
        assert isinstance(node, adapters.LoRA)
