"""From a data section of the configuration to batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxpeft import console
from jaxpeft.data import empty_answers, formats, sources
from jaxpeft.data.batches import Batches, EvalBatches
from jaxpeft.data.examples import Examples, gather
from jaxpeft.data.formats import SFT
from jaxpeft.data.held_out import divided, remark
from jaxpeft.data.kinds import Kind
from jaxpeft.data.rejects import Rejects, Skipped
from jaxpeft.data.render import Example, render, special_ids
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jaxpeft.config import DataSection, SourceSection


def load_train(
    section: "DataSection",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    batch_size: int,
    seed: int,
    vocab_size: int | None = None,
    kind: Kind = SFT,
) -> Batches:
    """The training data of a configuration, read, rendered, and ready to be drawn from.

    Args:
        section: the configuration's section `data`.
        tokenizer: the model's tokenizer, with its chat template.
        batch_size: rows in a batch, over all devices and accumulation steps.
        seed: the seed of shuffling.
        vocab_size: rows of the model's embedding, in which every token has to have
            one; None: that is not checked.
        kind: what records become.

    Raises:
        InputError: something is wrong with the files, records, template or tokens; the
            problems of all sources are told together.
    """
    if section.packing and (kind.together > 1 or kind.columns):
        beside = "that are drawn together" if kind.together > 1 else "with their values"
        raise InputError(
            f"data.packing: found true; this objective needs examples {beside}, a row "
            "for each: set packing to false"
        )
    _check_size("training.batch_size", batch_size, kind)
    examples = _examples(
        "data.train",
        section.train,
        section,
        tokenizer,
        vocab_size,
        kind,
        split=section.packing,
        held_out=False,
    )
    return Batches(
        examples,
        batch_size=batch_size,
        seed=seed,
        max_length=section.max_length,
        pad_id=_pad_id(tokenizer, vocab_size),
        shuffle=section.shuffle,
        packing=section.packing,
        length_buckets=section.length_buckets,
    )


def load_eval(
    section: "DataSection",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    batch_size: int,
    vocab_size: int | None = None,
    kind: Kind = SFT,
) -> EvalBatches | None:
    """The evaluation data of a configuration, never packed; None where it has none.

    The weights of the sources have no effect here.

    Args:
        section: the configuration's section `data`.
        tokenizer: the model's tokenizer, with its chat template.
        batch_size: rows in a batch, over all devices.
        vocab_size: rows of the model's embedding, in which every token has to have
            one; None: that is not checked.
        kind: what records become.

    Raises:
        InputError: something is wrong with the files, records, template or tokens; the
            problems of all sources are told together.
    """
    if not section.evaluates:
        return None
    _check_size("data.eval_batch_size", batch_size, kind)
    examples = _examples(
        "data.eval" if section.eval else "data.eval_split",
        section.eval or section.train,
        section,
        tokenizer,
        vocab_size,
        kind,
        split=False,
        held_out=True,
    )
    return EvalBatches(
        examples,
        batch_size=batch_size,
        max_length=section.max_length,
        pad_id=_pad_id(tokenizer, vocab_size),
        length_buckets=section.length_buckets,
    )


def _check_size(key: str, batch_size: int, kind: Kind) -> None:
    if batch_size % kind.together:
        raise InputError(
            f"{key}: found {batch_size}; {kind.together} examples of a record stand "
            f"side by side in a batch: use a multiple of {kind.together}"
        )


def _examples(
    key: str,
    wanted: "Sequence[SourceSection]",
    section: "DataSection",
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int | None,
    kind: Kind,
    *,
    split: bool,
    held_out: bool,
) -> Examples:
    loaded: list[tuple[str, float, list[Example]]] = []
    problems: list[str] = []
    remarks: list[list[str]] = []
    skipped: list[tuple[Skipped, ...]] = []
    for source in wanted:
        try:
            rendered, said, rejects = _load(
                source, section, tokenizer, kind, split, held_out
            )
        except InputError as error:
            problems += error.problems
        else:
            loaded.append((source.path, source.weight, rendered))
            remarks.append(said)
            skipped.append(rejects.skipped())
    if problems:
        raise InputError(*dict.fromkeys(problems))
    examples = gather(loaded, remarks, kind, skipped)
    if not examples.supervised.any():
        raise InputError(
            f"{key}: none of the {len(examples)} examples has a token left to learn "
            f"({sum(s.truncated for s in examples.sources)} were cut at "
            f"data.max_length {section.max_length}); raise max_length so that the "
            "answers fit, or look at the answers in the data"
        )
    largest = int(examples.tokens.max())
    if vocab_size is not None and largest >= vocab_size:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer gives token id {largest}, but "
            f"the model's embedding has {vocab_size} rows; use the tokenizer that "
            "belongs to this model"
        )
    return examples


def _load(
    source: "SourceSection",
    section: "DataSection",
    tokenizer: "PreTrainedTokenizerBase",
    kind: Kind,
    split: bool,
    held_out: bool,
) -> tuple[list[Example], list[str], Rejects]:
    origin = sources.source_of(source)
    rejects = Rejects(str(origin), skip=section.on_error == "skip")
    with console.waiting(f"reading {origin}"):
        rows = sources.read(origin, source.max_samples, rejects)
        parsed = formats.readable(rows, source.format, source.fields, rejects, kind)
    rejects.settle(len(parsed) + rejects.count)
    remarks = []
    if share := section.eval_split:
        sides = divided(parsed, share)
        if held_out:
            remarks = remark(source.path, len(sides[1]), len(parsed), share)
        parsed = sides[held_out]
    remarks += empty_answers.remark(source.path, parsed, held_out=held_out)
    train_on = kind.train_on or section.train_on
    examples = render(
        [sample for _, sample in parsed],
        [row.place for row, _ in parsed],
        tokenizer,
        max_length=section.max_length,
        train_on=train_on,
        split=split,
        rejects=rejects,
        kind=kind,
    )
    if not examples:
        rejects.settle(rejects.count)
    if train_on == "assistant" and _is_endless(examples, tokenizer):
        remarks.append(
            f"{source.path}: no special token ends an answer in the chat template of "
            f"{tokenizer.name_or_path}, and the model is not taught to stop; write "
            "eos_token after the answers in its chat_template.jinja"
        )
    remarks += kind.check(source.path, gather([("", 1.0, examples)], kind=kind))
    return examples, remarks + rejects.remark(len(examples)), rejects


def _is_endless(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase"
) -> bool:
    """Whether no example that is whole is learned to a token that can end a turn."""
    special = set(special_ids(tokenizer).tolist())
    whole = False
    for example in examples:
        learned = np.flatnonzero(example.supervised)
        if example.truncated or not len(learned):
            continue
        if int(example.tokens[learned[-1]]) in special:
            return False  # the first example, where the template is an ordinary one
        whole = True
    return whole


def _pad_id(tokenizer: "PreTrainedTokenizerBase", vocab_size: int | None) -> int:
    """The token that fills rows up; any would do: padding is masked by position."""
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int) or (vocab_size is not None and pad >= vocab_size):
        return 0
    return pad
