"""A model of ours as EleutherAI's harness asks one: likelihoods and answers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from jaxpeft import console, hf
from jaxpeft.assembly.trained import Trained
from jaxpeft.devices import sharding
from jaxpeft.errors import InputError
from jaxpeft.evaluate.asking import MAX_NEW_TOKENS, Asking, asking_of
from jaxpeft.evaluate.encoding import Encoding, Pair, cut
from jaxpeft.generate import stopping
from jaxpeft.generate.generation import generate
from jaxpeft.generate.likelihood import Likelihood, batches, likelihoods


class HarnessModel(LM):
    """A model with its adapter, asked by `lm_eval.evaluator`.

    Texts become tokens by the rules of the harness's own model of transformers
    (`lm_eval.models.huggingface.HFLM`), so that the numbers can be compared. Every
    process of a run asks for everything, and each batch is split over the mesh.

    Args:
        model: what is asked.
        batch_size: sequences that are read or answered together.
        mesh: the devices that they are split over; None: none.
        chat: whether questions are turns of a chat, which the model's template writes.

    Attributes:
        tokenizer: the model's.
        asked: whether the model is at work; false while the harness is.

    Raises:
        InputError: where the mesh does not divide the batch, or the tokenizer knows no
            token to begin with, or has no chat template where one is wanted.
    """

    def __init__(
        self,
        model: Trained,
        *,
        batch_size: int,
        mesh: jax.sharding.Mesh | None = None,
        chat: bool = False,
    ):
        super().__init__()
        self.tokenizer = model.base.tokenizer
        self.asked = False
        self._model, self._batch_size, self._mesh = model, batch_size, mesh
        self._encoding = Encoding(self.tokenizer, self.max_length)
        self._stop = hf.stop_ids(model.base.directory, self.tokenizer, turns=chat)
        if mesh is not None:
            sharding.check_batch(batch_size, mesh, "--batch_size")
        if self._encoding.prefix is None:
            raise InputError(
                f"{model.base.directory}: its tokenizer names neither a bos_token nor "
                "an eos_token, one of which stands before a text without context; name "
                "one in tokenizer_config.json"
            )
        if chat and not self.tokenizer.chat_template:
            raise InputError(
                f"--apply_chat_template: the tokenizer in {model.base.directory} has "
                "no chat template; leave it out, or add a chat_template.jinja"
            )

    @property
    def max_length(self) -> int:
        """The tokens of the model's context."""
        return self._model.base.cfg.max_position_embeddings

    @property
    def max_gen_toks(self) -> int:
        """The most tokens of an answer where a task says nothing."""
        return MAX_NEW_TOKENS

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness tells its caches of requests apart by."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's chat template; None where none is wanted.

        Args:
            chat_template: whether one is wanted.
        """
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's chat template writes it.

        A template that refuses a message of the system is given the others alone, as
        the harness does.

        Args:
            chat_history: messages, with `role` and `content` each.
            add_generation_prompt: whether an answer follows; else the last message is
                one that is continued.
        """

        def written(messages: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return written(chat_history)
        except jinja2.TemplateError:
            console.remark(
                "the chat template refuses the messages of a task as they are; they "
                "are written without those of the role system"
            )
            return written([m for m in chat_history if m["role"] != "system"])

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the greedy one.

        Args:
            requests: whose `args` are (context, continuation).

        Raises:
            InputError: a continuation adds no token to its context, or is longer than
                the model's context.
        """
        pairs = [self._encoding.pair(*request.args) for request in requests]
        self._check(requests, pairs)

        def keep(found: Mapping[int, Likelihood]) -> None:
            for number, one in found.items():
                key = requests[number].args
                self.cache_hook.add_partial("loglikelihood", key, tuple(one))

        found = self._likelihoods(pairs, keep)
        return [(one.log_probability, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood of each text, every token with what fits before it.

        Args:
            requests: whose `args` are (text,).
        """
        windows = [self._encoding.windows(request.args[0]) for request in requests]
        found = iter(self._likelihoods([w for text in windows for w in text]))
        sums = []
        for request, text in zip(requests, windows, strict=True):
            sums.append(sum(next(found).log_probability for _ in text))
            key = request.args
            self.cache_hook.add_partial("loglikelihood_rolling", key, sums[-1])
        return sums

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The text that continues each context, up to a text that ends it.

        Args:
            requests: whose `args` are (context, settings): `until`, `max_gen_toks`,
                `do_sample`, `temperature`, `top_k`, `top_p`, `repetition_penalty`.

        Raises:
            InputError: for other settings, and ones out of range.
        """
        base = self._model.base
        groups: dict[Asking, list[int]] = {}
        for number, request in enumerate(requests):
            place = f"--tasks: {request.task_name}: generation_kwargs"
            asking = asking_of(_given(request)[1], place, base, self.max_length)
            groups.setdefault(asking, []).append(number)
        answers, done = [""] * len(requests), 0
        total = sum(-(-len(group) // self._batch_size) for group in groups.values())
        self.asked = True
        with console.Work("answers, in batches", total) as work:
            for asking, group in groups.items():
                room = self.max_length - asking.max_new_tokens
                prompts = [
                    self._encoding.prompt(requests[number].args[0], room)
                    for number in group
                ]
                lengths = [len(prompt) for prompt in prompts]
                for part, width in batches(lengths, self._batch_size, room):
                    rows = [prompts[at] for at in part]
                    found = self._answers(rows, width, asking, done)
                    for at, answer in zip(part, found, strict=True):
                        request, answers[group[at]] = requests[group[at]], answer
                        self.cache_hook.add_partial(
                            "generate_until", request.args, answer
                        )
                    done += len(part)
                    work.advance()
        self.asked = False
        return answers

    def _answers(
        self, prompts: list[list[int]], width: int, asking: Asking, first: int
    ) -> list[str]:
        """The answers to a batch, which is filled up where there are few prompts.

        Args:
            prompts: token ids.
            width: that they are padded to.
            asking: how the answers are wanted.
            first: the number of the first of them among all, for what is drawn.
        """

        def text(tokens: list[int]) -> str:
            return self.tokenizer.decode(tokens, skip_special_tokens=True)

        def ended(tokens: list[int]) -> bool:
            return stopping.cut(text(tokens), asking.until) is not None

        missing = self._batch_size - len(prompts)
        base = self._model.base
        found = generate(
            self._model.params,
            base.cfg,
            [*prompts, *prompts[:1] * missing],
            max_new_tokens=asking.max_new_tokens,
            stop=[*self._stop, *stopping.token_ids(self.tokenizer, asking.until)],
            sampling=asking.sampling,
            first_request=first,
            ended=ended if asking.until else None,
            width=width,
            mesh=self._mesh,
        )
        return [cut(text(tokens), asking.until) for tokens in found[: len(prompts)]]

    def _likelihoods(
        self,
        pairs: Sequence[Pair],
        keep: Any = lambda found: None,
    ) -> list[Likelihood]:
        base = self._model.base
        self.asked = True
        with console.Work("log-likelihoods", len(pairs)) as work:

            def told(found: Mapping[int, Likelihood]) -> None:
                keep(found)
                work.advance(len(found))

            found = likelihoods(
                self._model.params,
                base.cfg,
                pairs,
                batch_size=self._batch_size,
                mesh=self._mesh,
                told=told,
            )
        self.asked = False
        return found

    def _check(self, requests: Sequence[Instance], pairs: Sequence[Pair]) -> None:
        problems = []
        for request, (_, added) in zip(requests, pairs, strict=True):
            place = f"--tasks: {request.task_name}: document {request.doc_id}"
            text = json.dumps(_given(request)[1][:60], ensure_ascii=False)
            if not added:
                problems.append(
                    f"{place}: the continuation {text} adds no token to its context; "
                    "give the task's choices texts, and a target_delimiter"
                )
            elif len(added) > self.max_length:
                problems.append(
                    f"{place}: the continuation {text} has {len(added)} tokens, the "
                    f"model's context {self.max_length}; leave the task out"
                )
        if problems:
            raise InputError(*problems[:5])


def _given(request: Instance) -> Any:
    """What a request asks: the harness says less of it than there is."""
    return request.args
