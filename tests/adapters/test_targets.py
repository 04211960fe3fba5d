"""Which modules a `target_modules` setting means, against what PEFT adapts."""

import copy

import jax
import peft
import pytest

from jaxpeft import adapters, models
from jaxpeft.adapters import targets
from jaxpeft.errors import InputError

SETTINGS = {
    "names": ["q_proj", "v_proj"],
    "one name": ["o_proj"],
    "with its parent": ["self_attn.q_proj", "mlp.down_proj"],
    "whole names": ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj"],
    "a layer's name": ["1.mlp.gate_proj"],
    "the head": ["lm_head", "q_proj"],
    "all-linear": "all-linear",
    "expression": r".*\.(q|v)_proj",
    "expression with layers": r"model\.layers\.[1-9]\.mlp\..*_proj",
    "expression for one": r"model\.layers\.0\.self_attn\.o_proj|.*down_proj",
    "expression for the head": r"lm_head|.*k_proj",
}


@pytest.fixture(scope="module")
def adapted_by_peft(make_torch):
    """adapted_by_peft(target_modules, tied): the names of the modules."""
    cache = {tied: make_torch(tie_word_embeddings=tied) for tied in (False, True)}

    def run(target_modules, tied=False):
        config = peft.LoraConfig(target_modules=target_modules, task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(copy.deepcopy(cache[tied]), config)
        modules = adapted.base_model.model.named_modules()
        return {name for name, module in modules if hasattr(module, "lora_A")}

    return run


def adapted_here(params, target_modules):
    names = targets.names_of(params)
    return {
        name
        for path, hits in targets.select(names, target_modules).items()
        for name, hit in zip(names[path], hits)
        if hit
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_modules_as_peft(name, adapted_by_peft, llama):
    expected = adapted_by_peft(SETTINGS[name])
    assert expected
    assert adapted_here(llama.params, SETTINGS[name]) == expected


def test_all_linear_of_a_tied_model(adapted_by_peft, llama):
    tied = {"model": llama.params["model"]}
    assert adapted_here(tied, "all-linear") == adapted_by_peft("all-linear", tied=True)


def refused(params, target_modules):
    with pytest.raises(InputError) as caught:
        targets.select(targets.names_of(params), target_modules)
    return caught.value.problems


def test_names_that_match_nothing_are_all_listed_with_near_ones(llama):
    found = refused(llama.params, ["q_proj", "v_prj", "gate_proj", "fc1"])
    assert len(found) == 2
    assert "'v_prj'" in found[0] and "did you mean 'v_proj'" in found[0]
    assert "'fc1'" in found[1] and "q_proj" in found[1]


@pytest.mark.parametrize("pattern", ["q_proj", "proj", ".*q_prj", "Q_PROJ", ""])
def test_an_expression_must_match_a_whole_name(pattern, llama):
    (found,) = refused(llama.params, pattern)
    assert repr(pattern) in found and "whole" in found


def test_part_of_a_name_is_no_name(llama):
    assert "'proj'" in refused(llama.params, ["proj"])[0]


def test_a_broken_expression_is_refused(llama):
    (found,) = refused(llama.params, "(q_proj")
    assert "regular expression" in found


def test_an_empty_list_is_refused(llama):
    assert "empty" in refused(llama.params, [])[0]


def test_untargeted_layers_of_a_stack_stay_as_they_are(llama):
    shapes = models.shapes(llama.cfg, "float32")
    assert adapted_here(shapes, SETTINGS["names"])  # no values are needed
    rules = {"target_modules": r"model\.layers\.1\.mlp\.up_proj", "lora_alpha": 16}
    params = adapters.inject(llama.params, {**rules, "r": 4}, jax.random.key(0))
    node = params["model"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert node.scale.tolist() == [0.0, 4.0]
