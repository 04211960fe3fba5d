"""Opens a configuration's data and shows them, without weights or devices."""

from pathlib import Path
from typing import Any

from jaxpeft import console, hf, models
from jaxpeft.assembly import configuration
from jaxpeft.assembly.base import Base, check_length
from jaxpeft.config import RunConfig
from jaxpeft.data import Batches, EvalBatches, StreamBatches
from jaxpeft.look import page, terminal
from jaxpeft.look.facts import facts
from jaxpeft.look.first import first


def look(cfg: RunConfig, show: int, html: Path | None = None) -> None:
    """Says what the data of a configuration are, and writes a page of it.

    Args:
        cfg: the configuration.
        show: how many examples of each source to show.
        html: the page to write; None: none.

    Raises:
        InputError: something is wrong with the tokenizer or the data.
    """
    tokenizer, batches, evaluation = opened(cfg)
    limit = cfg.data.max_length
    found = facts(batches, evaluation, tokenizer, limit)
    sets = [batches.examples] + ([] if evaluation is None else [evaluation.examples])
    records = [first(examples, show, tokenizer, limit) for examples in sets]
    color = terminal.has_color()
    for about, sources in zip(found, records):
        console.say()
        for line in terminal.overview(about, color):
            console.say(line)
        for remark in about.remarks:
            console.warn(remark)
        if show:
            console.say(f"\n{terminal.legend(color)}")
        for path, some in sources:
            for line in terminal.shown(path, some, color):
                console.say(line)
    if html is not None:
        page.write(html, f"{cfg.model.path}, at most {limit:,} tokens", found, records)
        console.say(f"\nwrote {html}")


def opened(cfg: RunConfig) -> tuple[Any, Batches | StreamBatches, EvalBatches | None]:
    """The tokenizer, the training data and the evaluation data of a configuration.

    Args:
        cfg: the configuration.

    Raises:
        InputError: something is wrong with the tokenizer or the data.
    """
    cfg = configuration.settled(cfg)
    objective = configuration.objective(cfg)
    directory = hf.resolve(cfg.model.path, weights=False)
    model = models.config(directory)
    tokenizer = hf.load_tokenizer(directory)
    hf.check_vocab(tokenizer, model)
    check_length(cfg, Base(directory, model, tokenizer, cfg.model))
    batch_size, vocabulary = cfg.training.batch_size, model.vocab_size
    batches = objective.load_train(
        *(cfg.data, tokenizer),
        batch_size=batch_size,
        seed=cfg.seed,
        vocab_size=vocabulary,
    )
    evaluation = objective.load_eval(
        cfg.data, tokenizer, batch_size=batch_size, vocab_size=vocabulary
    )
    return tokenizer, batches, evaluation
