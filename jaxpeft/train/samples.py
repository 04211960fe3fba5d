"""Answers to the first evaluation examples, to be read beside the references."""

from typing import Any

from jaxpeft import hf, tree
from jaxpeft.assembly.run import Run
from jaxpeft.generate.generation import generate

SAMPLE_TOKENS = 96  # of an answer shown before and after training


def answers(run: Run, trainable: Any) -> list[tuple[str, str, str]]:
    """(prompt, reference, answer) for the first evaluation examples."""
    source = run.evaluation or run.batches
    stop = hf.stop_ids(run.base.directory, run.base.tokenizer)
    tokenizer, room = run.base.tokenizer, run.base.cfg.max_position_embeddings
    shown = []
    for index in range(min(run.cfg.training.samples, len(source.examples))):
        prompt, reference = source.examples.question(index)
        if len(prompt) < 2 or len(prompt) + SAMPLE_TOKENS > room:
            continue
        answer = generate(
            tree.combine(trainable, run.frozen),
            run.base.cfg,
            [prompt],
            max_new_tokens=SAMPLE_TOKENS,
            stop=stop,
        )[0]
        while reference and reference[-1] in stop:  # an answer ends before it
            reference = reference[:-1]
        texts = (tokenizer.decode(t) for t in (reference, answer))
        prompt_text = tokenizer.decode(prompt, skip_special_tokens=True)
        shown.append((prompt_text, *texts))
    return shown
