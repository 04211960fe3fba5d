"""Optimizers and schedules that cannot be: exit code 2, help, and nothing written.

Each row is a run that cannot be, and the words that `train` must answer with.
"""

import pytest

ROWS = []


def bad(*words):
    """Adds the function below to the table, and what the answer says."""

    def add(spoil):
        ROWS.append(pytest.param(spoil, words, id=spoil.__name__))
        return spoil

    return add


@bad("optimizer.name: found 'adamw_8bits'", "did you mean 'adamw_8bit'")
def misspelt_optimizer(place):
    place.set("optimizer.name", "adamw_8bits")


@bad("schedule.name: found 'cosine_with_restart'", "'cosine_with_restarts'")
def misspelt_schedule(place):
    place.set("schedule.name", "cosine_with_restart")


@bad("optimizer.update_gap: found 10; is not a key of 'apollo'")
def another_optimizer_s_key(place):
    place.config["optimizer"] = {"name": "apollo", "rank": 4, "update_gap": 10}


@bad("optimizer.rank: found 512", "at most 4", "q_proj")
def rank_over_the_matrix(place):
    place.config["optimizer"] = {"name": "apollo", "rank": 512}


@bad("optimizer.target_modules", "k_proj")
def target_that_does_not_train(place):
    place.config["optimizer"] = {
        "name": "apollo",
        "rank": 2,
        "target_modules": [".*k_proj.*"],
    }


@bad("schedule.name: found 'reduce_lr_on_plateau'", "data.eval", "eval_steps")
def plateau_without_evaluation(place):
    place.set("schedule.name", "reduce_lr_on_plateau")


@bad("schedule.name: found 'cosine'", "schedule_free_adamw", "{{name: constant}}")
def schedule_free_that_decays(place):
    place.config["optimizer"] = {"name": "schedule_free_adamw"}


@bad("schedule.warmup_steps: found 1", "schedule_free_radam")
def warmup_of_what_warms_up_itself(place):
    place.config["optimizer"] = {"name": "schedule_free_radam"}
    place.config["schedule"] = {"name": "constant", "warmup_steps": 1}


@bad("schedule", "min_lr", "min_lr_rate")
def no_lowest_rate(place):
    place.config["schedule"] = {"name": "cosine_with_min_lr"}


@bad("schedule.decay_steps: is missing")
def no_decay(place):
    place.config["schedule"] = {"name": "warmup_stable_decay"}


@bad("optimizer.groups", "'.*no_such.*'", "q_proj")
def group_of_nothing(place):
    place.set("optimizer.groups", [{"pattern": ".*no_such.*"}])


@bad("optimizer.groups[0].pattern: found '('", "regular expression")
def group_with_a_bad_pattern(place):
    place.set("optimizer.groups", [{"pattern": "("}])


@bad("optimizer.lora_plus_ratio", "'prodigy' has one rate")
def lora_plus_where_there_is_one_rate(place):
    place.config["optimizer"] = {"name": "prodigy", "lora_plus_ratio": 16.0}


@bad("optimizer.target_modules: found '*attn*'", "regular expression")
def targets_with_a_bad_pattern(place):
    place.config["optimizer"] = {"name": "apollo", "target_modules": ["*attn*"]}


@bad("optimizer.b1: found 1.5", "optimizer.eps: found -1", "below 1")
def numbers_without_sense(place):
    place.config["optimizer"] = {"name": "adamw", "b1": 1.5, "eps": -1.0}


@bad("optimizer.relative_step: found true", "without a warmup")
def relative_steps_with_a_warmup(place):
    place.config["optimizer"] = {"name": "adafactor", "relative_step": True}
    place.config["schedule"] = {"name": "constant", "warmup_steps": 1}


@bad("optimizer.groups", "'prodigy' has one rate")
def groups_where_there_is_one_rate(place):
    place.config["optimizer"] = {"name": "prodigy", "groups": [{"pattern": ".*"}]}


@bad("training.gradient_accumulation_steps: found 2", "fused_backward: false")
def fused_and_accumulated(place):
    place.config["adapter"] = {"method": "full"}
    place.config["optimizer"] = {"name": "adalomo"}
    place.set("training.gradient_accumulation_steps", 2)


@bad("training.fused_backward: found true", "'lora'", "method full")
def fused_with_an_adapter(place):
    place.set("training.fused_backward", True)


@bad("optimizer.name: found 'prodigy'", "fused_backward: false")
def fused_with_a_rule_over_all(place):
    place.config["adapter"] = {"method": "full"}
    place.config["optimizer"] = {"name": "prodigy"}
    place.set("training.fused_backward", True)


@bad("adapter.init_from: found 'somewhere'", "method full")
def full_from_an_adapter(place):
    place.config["adapter"] = {"method": "full", "init_from": "somewhere"}


@bad("optimizer.relative_step: found true", "{{name: constant}}")
def relative_rate_that_decays(place):
    place.config["optimizer"] = {"name": "adafactor", "relative_step": True}


@pytest.mark.parametrize(("spoil", "words"), ROWS)
def test_a_bad_optimizer_is_explained_and_leaves_nothing(spoil, words, refused):
    refused(spoil, words)
