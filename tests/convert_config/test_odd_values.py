"""Every key that is known, at values of the wrong kind: never a traceback."""

import contextlib

import pytest

from jaxpeft import convert_config
from jaxpeft.convert_config import peft_config, trainer
from jaxpeft.convert_config.llamafactory import from_llamafactory
from jaxpeft.convert_config.llamafactory_rows import ROWS
from jaxpeft.convert_config.training_arguments import SFT, from_training_arguments
from jaxpeft.convert_config.writing import to_yaml
from jaxpeft.errors import InputError

MODEL = {"model_name_or_path": "org/model", "dataset": "mine"}
# Switches, so that the keys behind them are looked at.
LLAMAFACTORY = [
    {"finetuning_type": "full", "use_galore": True},
    {"finetuning_type": "full", "use_apollo": True},
    {"finetuning_type": "freeze"},
    {"eval_dataset": "mine", "eval_strategy": "steps", "packing": True},
    {"quantization_bit": 4, "use_dora": True, "pissa_init": True},
    {"adapter_name_or_path": "a"},
]


# Keys of PEFT's outside its tables.
BESIDE = ("peft_type", "use_dora", "target_modules", "init_lora_weights")


def from_arguments(keys):
    return from_training_arguments(keys, model="m", data="d.json", eval_data="e.json")


def from_peft(config):
    return from_training_arguments({}, config, model="m", data="d.json")


# A front end, keys to begin with, and those that it knows by its tables.
ENDS = [
    (from_llamafactory, MODEL, ROWS),
    *((from_llamafactory, MODEL | more, {}) for more in LLAMAFACTORY),
    (from_arguments, {}, {**trainer.ROWS, **SFT}),
    *(
        (from_peft, {"peft_type": kind}, {**rows, **dict.fromkeys(BESIDE)})
        for kind, (_, rows) in peft_config.METHODS.items()
    ),
]


@pytest.mark.parametrize("odd", [[1], {}, "x"], ids=str)
@pytest.mark.parametrize("end", range(len(ENDS)))
def test_no_key_ends_in_a_traceback(end, odd, tmp_path):
    translate, keys, rows = ENDS[end]
    plain, path = translate(keys), tmp_path / "ours.yaml"
    for key in sorted({*rows, *plain.known}):
        with contextlib.suppress(InputError):
            draft = translate(keys | {key: odd})
            text = to_yaml(draft, "theirs", "ours.yaml")
            if draft.settings != plain.settings:
                path.write_text(text)
                convert_config.verify(path)
