"""Wrong configurations: exit code 2, help, and nothing written.

Each row is a run that cannot be, and the words that `train` must answer with: the key
or the file, the value found, the remedy.
"""

import json
import subprocess
import sys

import pytest

from jaxpeft import adapters, config

ROWS = []


def bad(number, *words):
    """Adds the function below to the table: its number in the list of promises, and
    what the answer says."""

    def add(spoil):
        ROWS.append(pytest.param(spoil, words, id=f"{number}-{spoil.__name__}"))
        return spoil

    return add


@bad(1, "optimizer.learning_rat: found 0.1", "did you mean 'learning_rate'?")
def misspelt_key(place):
    place.set("optimizer.learning_rat", 0.1)


@bad(1, "trainig", "did you mean 'training'?")
def misspelt_section(place):
    place.set("trainig", {"max_steps": 3})


@bad(1, "adapter.rank: found 8", "did you mean 'adapter.r'?")
def name_of_another_program(place):
    place.set("adapter.rank", 8)


@bad(1, "adapter.method: found 'lorra'", "did you mean 'lora'")
def misspelt_method(place):
    place.set("adapter.method", "lorra")


@bad(3, "{here}/config.yaml:4", "seed", "line 2")
def duplicate_key(place):
    place.text = f"output_dir: {place.folder}/run\nseed: 1\nmodel: {{path: x}}\nseed: 2"


@bad(4, "training.max_steps: found true", "must be a whole number")
def steps_true(place):
    place.set("training.max_steps", True)


@bad(4, "training.max_steps: found 1.5", "must be a whole number")
def steps_of_a_half(place):
    place.arguments = ["training.max_steps=1.5"]


@bad(4, "training.max_steps: found -1", "must be at least 1")
def steps_negative(place):
    place.arguments = ["training.max_steps=-1"]


@bad(5, "optimizer.learning_rate: found nan", "must be finite")
def rate_nan(place):
    place.set("optimizer.learning_rate", float("nan"))


@bad(5, "optimizer.learning_rate: found inf", "must be finite")
def rate_infinite(place):
    place.arguments = ["optimizer.learning_rate=.inf"]


@bad(6, "seed: found 'x'", "model.dtype: found 'f16'", "nothing: found 1", "adapter.r")
def several_errors(place):
    place.set("seed", "x")
    place.set("model.dtype", "f16")
    place.set("nothing", 1)
    place.set("adapter.r", "four")


@bad(7, "{here}/config.yaml", "empty")
def empty_file(place):
    place.text = ""


@bad(7, "{here}/config.yaml", "list", "mapping")
def list_in_place_of_sections(place):
    place.text = "- output_dir: x\n"


@bad(7, "{here}/config.yaml", "text")
def binary_file(place):
    place.text = bytes(range(256))


@bad(7, "{here}/config.yaml:2", "tab", "spaces")
def tab_indented(place):
    place.text = "model:\n\tpath: x\n"


@bad(8, "{here}/config.yaml:1", "!!python/object/apply:os.system", "tag")
def python_tag(place):
    place.text = f"seed: !!python/object/apply:os.system ['touch {place.folder}/x']"


@bad(10, "seed.x", "seed is", "seed=VALUE")
def override_through_a_scalar(place):
    place.arguments = ["seed.x=1"]


@bad(11, "adapter.r: found 193", "192 x 192", "from 1 to 192")
def rank_over_the_matrix(place):
    place.set("adapter.r", 193)


@bad(12, "adapter.target_modules: 'q_prj' matches no", "did you mean 'q_proj'")
def target_without_a_match(place):
    place.set("adapter.target_modules", ["v_proj", "q_prj"])


@bad(12, "adapter.target_modules: '.*attention.*' matches no", "model.layers.0")
def expression_without_a_match(place):
    place.set("adapter.target_modules", ".*attention.*")


@bad(13, "mesh", "tensor 3", "1")
def mesh_over_the_devices(place):
    place.set("mesh.tensor", 3)


@bad(14, "training.batch_size: found 5", "4 or 6")
def batch_not_divisible(place):
    place.set("training.batch_size", 5)
    place.set("training.gradient_accumulation_steps", 2)


@bad(14, "model.offload: found 'weights' with adapter.method full", "activations")
def weights_that_train_on_the_host(place):
    place.set("model.offload", "weights")
    place.set("adapter", {"method": "full"})


@bad(15, "data.max_length: found 1025", "1024", "max_position_embeddings", "yarn")
def longer_than_the_context(place):
    place.set("data.max_length", 1025)


@pytest.mark.parametrize(("spoil", "words"), ROWS)
def test_a_bad_input_is_explained_and_leaves_nothing(spoil, words, refused):
    refused(spoil, words)


DEVICES = """
import json, sys
from jaxpeft import cli, train
for arguments in json.load(sys.stdin):
    sys.stderr.write(f"exit {cli.run(train.main, arguments)}\\n")
"""


@pytest.mark.slow
def test_a_mesh_and_a_batch_have_to_fit_the_devices(place, contents, of_devices):
    """13 and 14, with 4 devices; the numbers on offer are right."""
    place.set("training.gradient_accumulation_steps", 2)
    place.set("training.batch_size", 8)
    arguments = place.write()
    before = contents(place.folder)
    tries = {
        "mesh.fsdp=3": ["needs a multiple of 3 devices", "there are 4"],
        "training.batch_size=4": ["training.batch_size: found 4", "use 8\n"],
        "training.batch_size=22": ["4 devices", "use 16 or 24\n"],
        "data.eval_batch_size=6": ["data.eval_batch_size: 6", "4 or 8"],
    }
    child = subprocess.run(
        [sys.executable, "-c", DEVICES],
        input=json.dumps([[*arguments, override] for override in tries]),
        env=of_devices(4),
        capture_output=True,
        text=True,
    )
    answers = child.stderr.split("exit 2\n")
    assert len(answers) == len(tries) + 1, child.stderr
    for answer, words in zip(answers, tries.values()):
        assert all(word in answer for word in words), answer
    assert contents(place.folder) == before


def test_a_key_of_another_method_says_what_to_do():
    found = config.check_call(
        "adapter", "ia3", adapters.TABLE, {"r": 8}, selector="method"
    )
    assert len(found) == 1
    assert "'adapter.r'" not in found[0]  # no advice to use the very key
    assert found[0].endswith("command line, 'adapter={method: ia3}'")
