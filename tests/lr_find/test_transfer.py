"""How a known rate moves to other settings: the rules by their closed forms."""

from pathlib import Path

import pytest

from jaxpeft import config
from jaxpeft.assembly import configuration
from jaxpeft.lr_find import transfer
from jaxpeft.lr_find.transfer import Side

TOY = Path(config.__file__).parents[1] / "assets" / "tiny-llama"
QUICKSTART = TOY.parent / "quickstart.yaml"
RATE = 0.01  # of the quickstart: lora, rank 16, alpha 32, batch 16, adamw


def guess(*changes, since=()):
    """(the carried rate, the moves) from the quickstart, with keys replaced."""
    sides = [
        Side(configuration.open_config(QUICKSTART, words), TOY)
        for words in (since, (*since, *changes))
    ]
    found = transfer.moves(*sides)
    return transfer.carried(RATE, found), found


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        (("training.batch_size=64",), 4**0.25),
        (("optimizer={name: sgd}",), None),
        (("adapter.r=64", "adapter.lora_alpha=128"), 4**-0.42),
        (("adapter.r=64",), 4**-0.42 * 4**0.58),
        (("adapter.r=64", "adapter.use_rslora=true"), 4**-0.42 * 2**-0.58),
        (("optimizer.name=paged_adamw_8bit",), 1.0),
        (("adapter={method: full}",), 1 / 10),
        (("adapter={method: full}", "training.max_steps=50"), 4**0.33 / 15),
        (("adapter={method: ia3}",), None),
        (
            ("adapter.r=32", "adapter.lora_alpha=64", "training.batch_size=4"),
            2**-0.42 / 4**0.25,
        ),
        (("training.max_steps=1000",), 5**-0.33),
        (("training.max_steps=300",), 1.0),
        (("seed=7", "data.max_length=64"), 1.0),
    ],
)
def test_each_difference_multiplies_the_rate_by_its_rule(changes, factor):
    rate, found = guess(*changes)
    if factor is None:
        assert [move.factor for move in found] == [None]
        lines = transfer.describe(Path("runs/a"), RATE, found)
        assert "range test" in lines[-1]
    else:
        assert rate == pytest.approx(RATE * factor, rel=0.05)  # two digits are written


def test_of_sgd_the_rate_goes_with_the_batch():
    sgd = ("optimizer={name: sgd, learning_rate: 0.1}",)
    assert guess("training.batch_size=64", since=sgd)[0] == 0.04


def test_an_optimizer_made_for_lora_keeps_its_rate_at_any_rank():
    rite = ("optimizer={name: lora_rite, learning_rate: 0.1}",)
    assert guess("adapter.r=4", since=rite)[0] == RATE


def test_from_full_to_lora_and_back_is_the_same_rate():
    there, _ = guess("adapter={method: full}")
    sides = [
        Side(configuration.open_config(QUICKSTART, words), TOY)
        for words in (("adapter={method: full}",), ())
    ]
    assert transfer.carried(there, transfer.moves(*sides)) == RATE


@pytest.mark.parametrize(
    ("method", "power"),
    [("lora", -0.21), ("full", -0.5), ("dora", -0.21), ("ia3", None)],
)
def test_a_larger_model_wants_a_lower_rate(method, power, tmp_path):
    text = (TOY / "config.json").read_text()
    wide = tmp_path / "config.json"
    wide.write_text(text.replace('"vocab_size": 4096', '"vocab_size": 409600'))
    section = f"adapter={{method: {method}}}"
    cfg = configuration.open_config(QUICKSTART, [section])
    (move,) = transfer.moves(Side(cfg, TOY), Side(cfg, tmp_path))
    own = 3_148_224  # as its README.md says
    ratio = (own + 192 * (409_600 - 4096)) / own
    wanted = None if power is None else pytest.approx(ratio**power)
    assert move.factor == wanted
