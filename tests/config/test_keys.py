"""What each configuration key says of itself, against lists that are kept here."""

import json
from collections.abc import Iterator

import pytest

from jaxpeft import config
from jaxpeft.assembly.configuration import TABLES
from jaxpeft.config import RunConfig, keys, settings
from jaxpeft.config.base import Section
from jaxpeft.config.data import SourceSection
from jaxpeft.config.sections import SECTIONS, GroupSection

# Changing these makes no other run of it.
NOT_IDENTITY = {
    *("output_dir", "deterministic", "model.path", "model.remat"),
    *("model.offload", "model.tile", "optimizer.offload"),
    *("training.logging_steps", "training.eval_steps", "training.save_steps"),
    *("training.save_total_limit", "training.samples", "training.report_to"),
    *("training.eval_on_start", "training.eval_max_examples"),
    *("training.watchdog_seconds", "training.termination_grace_seconds"),
}
NOT_IDENTITY_SECTIONS = ("data", "evaluation", "mesh", "cluster")
# These one program takes as arrays, or never sees.
OWN = {"output_dir", "seed", "optimizer.weight_decay"}
OWN |= {f"adapter.{n}" for n in ("lora_alpha", "alpha_pattern", "use_rslora")}
OWN |= {f"objective.{n}" for n in ("beta", "gamma", "sft_weight", "cpo_alpha")}
OWN |= {f"objective.{n}" for n in ("desirable_weight", "undesirable_weight")}
RANKS = {"adapter.r", "adapter.rank_pattern"}
RATE, COURSE = "optimizer.learning_rate", "schedule"
OTHER = "another value"


def all_keys() -> Iterator[str]:
    """Every key of a run: those at the top, of the sections and of the components."""
    yield from (name for name in RunConfig.model_fields if name not in SECTIONS)
    for section, model in SECTIONS.items():
        names = set(model.model_fields)
        if section in TABLES:
            names |= {
                key for name in TABLES[section] for key in TABLES[section].keys(name)
            }
        yield from (f"{section}.{name}" for name in sorted(names))


KEYS = list(all_keys())


def split(key: str) -> tuple[str, str]:
    """(its section, "" at the top; its own name)."""
    section, _, name = key.rpartition(".")
    return section, name


@pytest.fixture(scope="module")
def cfg() -> RunConfig:
    mapping = {
        "output_dir": "runs/x",
        "model": {"path": "models/x"},
        "data": {"train": {"path": "train.json"}},
    }
    return config.parse(mapping, tables=TABLES)


def changed(cfg: RunConfig, key: str) -> RunConfig:
    """The configuration with another value of one key, whatever its type."""
    section, name = split(key)
    if not section:
        return cfg.model_copy(update={name: OTHER})
    inner = getattr(cfg, section).model_copy(update={name: OTHER})
    return cfg.model_copy(update={section: inner})


def text(found: dict) -> str:
    return json.dumps(found, sort_keys=True)


def says_both(said: object) -> bool:
    return (
        isinstance(said, dict)
        and set(said) == {"identity", "program"}
        and said["identity"] in keys.IDENTITY
        and said["program"] in keys.PROGRAM
    )


def test_every_key_says_what_it_is():
    said = {key: settings.says(*split(key), TABLES) for key in KEYS}
    assert [key for key in KEYS if not says_both(said[key])] == []


@pytest.mark.parametrize("model", [SourceSection, GroupSection])
def test_so_do_the_keys_within_a_key(model: type[Section]):
    fields = model.model_fields.items()
    silent = [name for name, field in fields if not says_both(field.json_schema_extra)]
    assert silent == []


def test_a_key_that_says_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(
        SECTIONS["training"].model_fields["samples"], "json_schema_extra", None
    )
    with pytest.raises(LookupError, match=r"training\.samples says nothing"):
        settings.says("training", "samples", TABLES)
    with pytest.raises(LookupError, match="'r'"):
        config.Table(TABLES["adapter"].rows).says_of("r")


@pytest.mark.parametrize("section", TABLES)
def test_what_a_table_says_of_a_key_is_said_of_one_that_is_there(section):
    known = {key for name in TABLES[section] for key in TABLES[section].keys(name)}
    assert set(TABLES[section].some_say) <= known


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("steering", [False, True], ids=["scheduled", "steered"])
def test_what_makes_another_run(cfg, steering):
    def identity(cfg: RunConfig) -> str:
        return text(config.identity(cfg, TABLES, steering))

    other = {k for k in KEYS if identity(changed(cfg, k)) != identity(cfg)}
    expected = {key for key in KEYS if split(key)[0] not in NOT_IDENTITY_SECTIONS}
    expected -= NOT_IDENTITY
    assert other == expected | ({"training.eval_steps"} if steering else set())


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("own", [(), ("rate",), ("rate", "course"), ("rank",)], ids=str)
def test_what_makes_another_program(cfg, own):
    def program(cfg: RunConfig) -> str:
        return text(config.program(cfg, TABLES, {"own", *own}))

    same = {k for k in KEYS if program(changed(cfg, k)) == program(cfg)}
    free = {RATE} if "rate" in own else RANKS if "rank" in own else set()
    courses = {key for key in KEYS if split(key)[0] == COURSE}
    assert same == OWN | free | (courses if "course" in own else set())


def test_the_identity_of_a_run_is_this_text(cfg):
    """Checkpoints hold it: a change of it keeps every saved run from going on."""
    assert text(config.identity(cfg, TABLES, steering=False)) == text(
        {
            "adapter": {
                "bias": "none",
                "exclude_modules": None,
                "init_from": None,
                "layers_to_transform": None,
                "method": "lora",
                "modules_to_save": [],
                "target_modules": "all-linear",
            },
            "model": {
                "dtype": "bfloat16",
                "quantization": "none",
                "quantization_skip": [],
            },
            "optimizer": {
                "decay_all": False,
                "groups": [],
                "learning_rate": 2e-4,
                "lora_plus_ratio": None,
                "max_grad_norm": 1.0,
                "name": "adamw",
            },
            "schedule": {"name": "cosine", "warmup_ratio": None, "warmup_steps": None},
            "seed": 42,
            "training": {
                "batch_size": 16,
                "early_stopping_patience": None,
                "early_stopping_threshold": 0.0,
                "fused_backward": None,
                "gradient_accumulation_steps": 1,
                "load_best_model_at_end": None,
                "max_nonfinite_steps": 10,
                "max_steps": None,
                "num_epochs": 1.0,
            },
        }
    )
