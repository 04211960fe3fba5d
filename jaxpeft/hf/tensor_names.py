"""What a model's files call its tensors, which transformers may call otherwise."""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import jax

from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.weights import is_spec, param_specs

HEAD, SCORE = "lm_head.weight", "score.weight"
# In models that see, too: before a tensor of the language model, and the head. The
# first is how most are published, the last how they were before transformers 4.52.
DEEPER = (
    ("language_model.model.", f"language_model.{HEAD}"),
    ("model.language_model.", HEAD),
    ("model.", HEAD),
)


class TensorNames(NamedTuple):
    """The names in the files of one model.

    Attributes:
        memory: what transformers' own names of the decoder's tensors begin with.
        files: what they begin with in the files.
        head: the head's tensor in the files.
        deeper: whether the language model is a part of a larger model.
    """

    memory: str
    files: str
    head: str
    deeper: bool

    def stored(self, name: str) -> str:
        """A tensor's name in the files, by its name in transformers' memory."""
        if name == HEAD:
            return self.head
        if name == SCORE:
            return name
        return self.files + name.removeprefix(self.memory)

    def specs(self, cfg: ModelConfig) -> Any:
        """`param_specs` of a model, with the tensors' names in the files."""
        return jax.tree.map(
            lambda spec: dataclasses.replace(spec, hf=self.stored(spec.hf)),
            param_specs(cfg),
            is_leaf=is_spec,
        )

    def beside(self, names: Collection[str]) -> set[str]:
        """Those of the files' tensors that are no part of the language model."""
        if not self.deeper:
            return set()
        return {n for n in names if n != self.head and not n.startswith(self.files)}


def of(names: Collection[str], cfg: ModelConfig) -> TensorNames:
    """How a model's files name its tensors.

    A model without a head is saved without the prefix of all its names (`wte.weight`
    for `transformer.wte.weight`), and transformers reads it as if they had it.

    Args:
        names: of all tensors in the files.
        cfg: the model's configuration.
    """
    embedding = param_specs(cfg)["model"]["embed_tokens"]["embedding"].hf
    memory = cfg.decoder if cfg.sees else embedding.partition(".")[0]
    memory += "."
    own = (memory, HEAD)
    for files, head in DEEPER if cfg.sees else (own, ("", HEAD)):
        if files + embedding.removeprefix(memory) in names:
            head = head if head in names else HEAD
            return TensorNames(memory, files, head, cfg.sees)
    return TensorNames(memory, *own, cfg.sees)
