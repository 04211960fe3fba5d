"""The tables of docs/migrating.md name keys that there are, on both sides."""

import itertools
import re

import pytest

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.config import RunConfig
from jaxpeft.config.sections import SECTIONS
from jaxpeft.convert_config import peft_config, trainer, trl
from jaxpeft.convert_config.draft import Draft
from jaxpeft.convert_config.llamafactory import from_llamafactory
from jaxpeft.convert_config.llamafactory_rows import ROWS

NAME = re.compile(r"`([^`]+)`")


def rows(root, head):
    """The cells of the table that begins with this heading."""
    page = (root / "docs" / "migrating.md").read_text()
    _, _, after = page.partition(f"\n| {head} |")
    lines = itertools.takewhile(lambda line: line[:1] == "|", after.splitlines()[2:])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def ours():
    """Every key that a configuration may have."""
    found = set(RunConfig.model_fields)
    for section, cls in SECTIONS.items():
        found |= {f"{section}.{name}" for name in cls.model_fields}
    for section, table in TABLES.items():
        found |= {f"{section}.{key}" for name in table for key in table.keys(name)}
    return found


def theirs(head):
    """Every key of theirs that is translated or explained."""
    if head == "adapter_config.json":
        tables = [rows for _, rows in peft_config.METHODS.values()]
        return {key for table in tables for key in table} | {
            *("peft_type", "use_dora", "init_lora_weights", "base_model_name_or_path"),
            "target_modules",
        }
    if head == "TRL":
        drafts = [Draft({"disable_dropout": False}) for _ in (*trl.PAIRS, "kto")]
        for draft, trainer_ in zip(drafts, (*trl.PAIRS, "kto")):
            draft.settings["adapter.method"] = "lora"
            trl.objective(draft, trainer_)
        return {*trl.ROWS, *(key for draft in drafts for key in draft.known)}
    known = {"model_name_or_path": "a", "dataset": "b"}
    draft = from_llamafactory(known)
    return {*ROWS, *trainer.ROWS, *draft.known}


@pytest.mark.parametrize(
    ("head", "least"),
    [
        ("LLaMA-Factory", 20),
        ("TrainingArguments", 15),
        ("TRL", 9),
        ("adapter_config.json", 6),
    ],
)
def test_every_key_of_the_page_exists(head, least, root):
    table = rows(root, head)
    assert len(table) >= least
    left = {name for row in table for name in NAME.findall(row[0])}
    right = {name for row in table for name in NAME.findall(row[1])}
    assert left - theirs(head) == set()
    assert right - ours() == set()
