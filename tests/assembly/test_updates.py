"""What is said of the rate before a run begins."""

import pytest

from jaxpeft import config
from jaxpeft.assembly import updates
from jaxpeft.assembly.configuration import TABLES


@pytest.mark.parametrize(
    ("optimizer", "schedule", "steps", "said"),
    [
        (
            {},
            {"warmup_ratio": 0.1},
            1,
            "all of the 1 steps: set schedule.warmup_steps=0",
        ),
        ({}, {"name": "linear", "warmup_steps": 1}, 1, "train longer"),
        (
            {"learning_rate": 0.0},
            {},
            3,
            "set optimizer.learning_rate, whose default is",
        ),
        ({"name": "lion", "learning_rate": 0.0}, {"name": "constant"}, 3, "default is"),
        ({}, {"warmup_ratio": 0.1}, 2, None),
        ({}, {"warmup_ratio": 1.0}, 2, None),
        ({}, {}, 1, None),
        ({"learning_rate": 1e-30}, {"name": "constant"}, 1, None),
        ({"name": "adafactor", "relative_step": True}, {"name": "constant"}, 3, None),
        ({"name": "prodigy", "learning_rate": 0.01}, {}, 9, "leave it out, for 1"),
        ({"name": "momo_adam", "learning_rate": 1e-4}, {}, 9, "leave it out, for 0.01"),
        ({"name": "prodigy", "learning_rate": 0.5}, {}, 9, None),
        ({"name": "momo_adam"}, {}, 9, None),
    ],
)
def test_a_run_of_which_the_rate_lets_hardly_anything_be_learned_is_warned_of(
    optimizer, schedule, steps, said
):
    mapping = {"output_dir": "runs/x", "model": {"path": "x"}}
    mapping |= {"data": {"train": {"path": "x.json"}}}
    mapping |= {"optimizer": optimizer, "schedule": schedule}
    cfg = config.parse(mapping, tables=TABLES)
    line = updates.rate_warning(cfg, updates.updates(cfg, steps).rate, steps)
    assert line is None if said is None else line and said in line
