"""Configurations that must be read as meant, and mistakes that must be explained."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpeft import config
from jaxpeft.config import strict_yaml
from jaxpeft.config.sections import SECTIONS
from jaxpeft.config.wording import NAMES_ELSEWHERE
from jaxpeft.errors import InputError

SMALLEST = {
    "output_dir": "runs/x",
    "model": {"path": "models/x"},
    "data": {"train": {"path": "train.json"}},
}


def problems(*overrides: str) -> list[str]:
    """What is wrong with the smallest configuration, changed so."""
    mapping: dict = {**SMALLEST}
    for override in overrides:
        path, _, text = override.partition("=")
        *above, key = path.split(".")
        node = mapping
        for part in above:
            node[part] = dict(node.get(part, {}))
            node = node[part]
        node[key] = strict_yaml.parse_scalar(text)
    try:
        config.parse(mapping)
    except InputError as error:
        return list(error.problems)
    return []


def test_what_is_left_out_has_its_default():
    found = config.parse(SMALLEST)
    assert found.seed == 42
    assert found.model.dtype == "bfloat16"
    assert found.training.num_epochs == 1.0
    assert found.training.eval_steps is None  # there is nothing to evaluate on
    assert found.optimizer.max_grad_norm == 1.0
    assert found.schedule.name == "cosine"
    assert config.parse({**SMALLEST, "mesh": None, "adapter": None}) == found


def test_several_sources_and_columns_of_ones_own():
    sources = [
        {"path": "a.json", "weight": 2},
        {"path": "b", "fields": {"prompt": "q"}},
    ]
    found = config.parse({**SMALLEST, "data": {"train": sources}}).data.train
    assert [source.weight for source in found] == [2.0, 1.0]
    assert found[1].fields == {"prompt": "q"}


def test_a_configuration_cannot_be_changed():
    found = config.parse(SMALLEST)
    with pytest.raises(ValueError, match="frozen"):
        found.seed = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_share_held_out_is_evaluated_like_a_file():
    found = config.parse({**SMALLEST, "data": {**SMALLEST["data"], "eval_split": 0.1}})
    assert found.data.evaluates and found.training.eval_steps == 50
    source = {"path": "eval.json"}
    for wrong, words in (
        ({"eval_split": 0.1, "eval": source}, "eval_split: found 0.1 beside data.eval"),
        ({"eval_split": 1.0}, "data.eval_split: found 1.0; must be less than 1"),
    ):
        with pytest.raises(InputError, match=words):
            config.parse({**SMALLEST, "data": {**SMALLEST["data"], **wrong}})


NUMBERS = st.floats(1e-12, 1e3)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
TEXTS = TEXT | st.sampled_from(["1e-4", "on", "007", "null", "a: b", "- x", "1:30"])


@settings(deadline=None)
@given(
    rate=NUMBERS,
    weight=NUMBERS,
    path=TEXTS.filter(lambda text: not text.startswith("~")),
    fields=st.none() | st.dictionaries(TEXTS, TEXTS, max_size=2),
    option=st.none()
    | st.booleans()
    | st.integers()
    | NUMBERS
    | TEXTS
    | st.lists(TEXTS),
    steps=st.none() | st.integers(1, 10**6),
    evaluate=st.booleans(),
)
@pytest.mark.slow
def test_a_configuration_survives_being_written_and_read(
    tmp_path_factory, rate, weight, path, fields, option, steps, evaluate
):
    source = {"path": path, "weight": weight, "fields": fields}
    written = config.parse(
        {
            "output_dir": path,
            "model": {"path": path},
            "adapter": {"method": "lora", "option": option},
            "data": {"train": [source, source], "eval": source if evaluate else None},
            "optimizer": {"learning_rate": rate},
            "training": {"max_steps": steps},
        }
    )
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(config.to_yaml(written), encoding="utf-8", newline="")
    assert config.load(file) == written


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.max_steps=true", "found true; must be a whole number"),
        ("training.max_steps=1.5", "found 1.5; must be a whole number"),
        ("training.max_steps=-1", "found -1; must be at least 1"),
        ("data.num_workers=0", "found 0; must be at least 1"),
        ("training.max_steps='10'", "found '10'; must be a whole number, written"),
        ("training.max_steps=10000000000000", "must be less than 2147483648"),
        ("optimizer.learning_rate=.nan", "found nan; must be finite"),
        ("optimizer.learning_rate=.inf", "found inf; must be finite"),
        ("optimizer.learning_rate=1e999", "found inf; must be finite"),
        ("optimizer.learning_rate=-1e-4", "found -0.0001; must be at least 0"),
        ("optimizer.learning_rate=true", "found true; must be a number"),
        ("optimizer.max_grad_norm=0", "found 0; must be greater than 0"),
        (
            "model.dtype=bfloat",
            "found 'bfloat'; must be 'float32', 'bfloat16', 'float16' or 'auto'; did",
        ),
        ("model.path=3", "found 3; must be text; put it in quotes"),
        ("model.path=''", "found ''; must not be empty"),
        ("data.packing=on", "found 'on'; must be true or false"),
        ("data.train=[]", "found []; must name at least one source"),
        ("data.train=a.json", "found 'a.json'; must be a mapping, such as"),
        ("data.train.weight=0", "found 0; must be greater than 0"),
        ("data.train.format=alpaka", "did you mean 'alpaca'?"),
        ("mesh.data=0", "found 0; must be a number of devices, or -1"),
        ("mesh.fsdp=-1", "found -1, as for data; only one"),
        ("mesh.tensor=-2", "found -2; must be at least -1"),
        ("schedule.warmup_ratio=1.5", "found 1.5; must be at most 1"),
        ("training=3", "found 3; must be a mapping"),
    ],
)
def test_a_wrong_value_is_named_with_the_remedy(override, problem):
    (message,) = problems(override)
    assert message.startswith(override.partition("=")[0])
    assert problem in message


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("training.max_step=1", "'max_steps'"),
        ("modle={}", "'model'"),
        ("learning_rate=1", "'optimizer.learning_rate'"),
        ("learning_rat=1", "'optimizer.learning_rate'"),
        ("training.max_length=1", "'data.max_length'"),
        ("path=x", "'model.path' or 'data.train.path'"),
        ("data.eval={path: x, formt: text}", "'format'"),
        ("cutoff_len=1", "'data.max_length'"),
        ("lora_rank=8", "'adapter.r'"),
        ("lora_target=all", "'adapter.target_modules'"),
        ("lr=1", "'optimizer.learning_rate'"),
        ("optim=adamw_torch", "'optimizer.name'"),
        ("lr_scheduler_type=cosine", "'schedule.name'"),
        ("num_train_epochs=3", "'training.num_epochs'"),
        ("training.per_device_train_batch_size=4", "'training.batch_size'"),
        ("zzz=1", "choose from output_dir, seed, deterministic, model"),
    ],
)
def test_an_unknown_key_comes_with_a_suggestion(override, meant):
    (message,) = problems(override)
    assert "there is no such key" in message
    assert meant in message


def test_names_from_elsewhere_point_to_keys_that_exist():
    of_components = {"r", "lora_alpha", "lora_dropout", "target_modules"} | {
        "b1",
        "b2",
        "eps",
    }
    for name, key in NAMES_ELSEWHERE.items():
        section, _, rest = key.partition(".")
        known = {*SECTIONS[section].model_fields, *of_components, "train.fields"}
        assert rest in known, name
        assert name not in SECTIONS[section].model_fields, name


def test_required_keys_are_named():
    with pytest.raises(InputError) as caught:
        config.parse({})
    assert [message.split(":")[0] for message in caught.value.problems] == [
        "output_dir",
        "model.path",
        "data.train",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["batch_size=10", "gradient_accumulation_steps=4"],
            "found 10; is not divisib",
        ),
        (["batch_size=10", "gradient_accumulation_steps=4"], "use 8 or 12"),
        (["batch_size=2", "gradient_accumulation_steps=4"], "use 4"),
        (["max_steps=10", "num_epochs=2"], "max_steps: found 10 beside num_epochs 2"),
        (["eval_steps=5"], "eval_steps: found 5; needs evaluation data"),
        (["early_stopping_patience=2"], "needs evaluation data: give data.eval"),
    ],
)
def test_keys_of_training_that_contradict_each_other(overrides, words):
    (message,) = problems(*(f"training.{override}" for override in overrides))
    assert message.startswith("training.")
    assert words in message


def test_warmup_is_given_once_and_fits_the_run():
    (message,) = problems("schedule.warmup_ratio=0.1", "schedule.warmup_steps=5")
    assert message.startswith("schedule.warmup_ratio: found 0.1 beside warmup_steps 5")
    (message,) = problems("schedule.warmup_steps=9", "training.max_steps=5")
    assert message.startswith("schedule.warmup_steps: found 9; must be at most")
