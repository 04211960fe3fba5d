"""From a data section of the configuration to batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxpeft.data import empty_answers, sources
from jaxpeft.data.batches import Batches, EvalBatches
from jaxpeft.data.examples import Examples, Share, joined
from jaxpeft.data.formats import SFT
from jaxpeft.data.held_out import held_out as sides
from jaxpeft.data.held_out import remark
from jaxpeft.data.kinds import Kind, unchecked
from jaxpeft.data.making import Recipe
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.stored_source import of_source
from jaxpeft.data.streamed import StreamBatches
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jaxpeft.config import DataSection, SourceSection

# So many records of a source that is streamed say what the others are like.
_SAMPLE = 1024


def load_train(
    section: "DataSection",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    batch_size: int,
    seed: int,
    vocab_size: int | None = None,
    kind: Kind = SFT,
) -> Batches | StreamBatches:
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
        _beginnings(section.train) if section.streaming else section.train,
        section,
        tokenizer,
        vocab_size,
        kind,
        split=section.packing,
        held_out=False,
    )
    if section.streaming:
        return StreamBatches(
            examples,
            section,
            tokenizer,
            batch_size=batch_size,
            seed=seed,
            pad_id=_pad_id(tokenizer, vocab_size),
            vocab_size=vocab_size,
            kind=kind,
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


def _beginnings(wanted: "Sequence[SourceSection]") -> "Sequence[SourceSection]":
    """The sources with their first records alone."""
    return [
        source.model_copy(
            update={"max_samples": min(source.max_samples or _SAMPLE, _SAMPLE)}
        )
        for source in wanted
    ]


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
    shares: list[Share] = []
    problems: list[str] = []
    for source in wanted:
        try:
            shares.append(_share(source, section, tokenizer, kind, split, held_out))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*dict.fromkeys(problems))
    examples = joined(shares, kind)
    if not any(source.supervised for source in examples.sources):
        raise InputError(
            f"{key}: none of the {len(examples)} examples has a token left to learn "
            f"({sum(s.truncated for s in examples.sources)} were cut at "
            f"data.max_length {section.max_length}); raise max_length so that the "
            "answers fit, or look at the answers in the data"
        )
    if vocab_size is not None and examples.largest >= vocab_size:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer gives token id "
            f"{examples.largest}, but the model's embedding has {vocab_size} rows; "
            "use the tokenizer that belongs to this model"
        )
    return examples


def _share(
    source: "SourceSection",
    section: "DataSection",
    tokenizer: "PreTrainedTokenizerBase",
    kind: Kind,
    split: bool,
    held_out: bool,
) -> Share:
    """What a source gives to train on, or to evaluate on."""
    train_on = kind.train_on or section.train_on
    recipe = Recipe(
        format=source.format,
        fields=source.fields,
        kind=kind,
        max_length=section.max_length,
        train_on=train_on,
        split=split and source.format == "text",
    )
    stored = of_source(source, section, recipe, tokenizer)
    about, arrays = stored.about, stored.arrays
    remarks, chosen, records = [], None, len(arrays["counts"])
    if share := section.eval_split:
        held = sides(np.asarray(arrays["hashes"]), share)
        chosen = held if held_out else ~held
        if held_out:
            remarks = remark(source.path, int(held.sum()), records, share)
    empty = np.asarray(arrays["empty"]) & (True if chosen is None else chosen)
    if empty.any():
        first = int(np.flatnonzero(empty)[0])
        remarks += empty_answers.remark(
            source.path,
            int(empty.sum()),
            records if chosen is None else int(chosen.sum()),
            about.places.get(first, f"record {first + 1}"),
            is_text=about.is_text,
            held_out=held_out,
        )
    if train_on == "assistant" and about.is_whole and not about.ends:
        remarks.append(
            f"{source.path}: no special token ends an answer in the chat template of "
            f"{tokenizer.name_or_path}, and the model is not taught to stop; write "
            "eos_token after the answers in its chat_template.jinja"
        )
    own = Share(source.path, source.weight, stored, chosen)
    if kind.check is not unchecked:
        remarks += kind.check(source.path, joined([own], kind))
    rejects = Rejects(source.path)
    rejects.take(about.rejects)
    remarks += rejects.remark(len(own.of_examples("lengths")))
    remarks += sources.passed_over(sources.source_of(source))
    return own._replace(remarks=remarks, skipped=rejects.skipped())


def _pad_id(tokenizer: "PreTrainedTokenizerBase", vocab_size: int | None) -> int:
    """The token that fills rows up; any would do: padding is masked by position."""
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int) or (vocab_size is not None and pad >= vocab_size):
        return 0
    return pad
