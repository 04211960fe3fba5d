"""The table of methods: a line for each, with what is special about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxpeft.adapters.bitfit import bitfit
from jaxpeft.adapters.bottleneck import bottleneck
from jaxpeft.adapters.dora import dora
from jaxpeft.adapters.embedding import lora_embedding
from jaxpeft.adapters.ia3 import ia3
from jaxpeft.adapters.lora import lora, lora_fa
from jaxpeft.adapters.oft import oft
from jaxpeft.adapters.partly import full
from jaxpeft.adapters.targets import ALL_LINEAR
from jaxpeft.adapters.vera import vera
from jaxpeft.adapters.virtual import prefix_tuning, prompt_tuning
from jaxpeft.config import Table, keys
from jaxpeft.errors import InputError

# The keys of every method that has a use for them: what of the base is meant,
MODULES = (
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "modules_to_save",
)
# which of its tokens train, and whether embedding and head stay one,
VOCABULARY = ("trainable_token_indices", "ensure_weight_tying")
# and which of its biases do.
COMMON = (*MODULES, "bias", *VOCABULARY)


@dataclass(frozen=True)
class Method:
    """A line of the table: a way to adapt a base, and what is special about it.

    Attributes:
        make: `make(base, key, **settings)` puts an adapter around one kernel. What it
            takes besides the table's `given` are its keys in the configuration.
        wraps: false: it is `make(params, key, **settings)` instead, and returns them
            with what trains in its place; it puts adapters around no kernels.
        heeds: those of the `COMMON` keys that it has a use for.
        targets: the modules that it is made for, by the ends of their names; those of
            them that a model has are its default `target_modules`.
        embedding: what `make` is for a table that tokens are looked up in; None: it
            adapts linear modules only.
        gives_model: the base itself trains, and the result is a whole model: there is
            no adapter to continue from, to merge or to leave out.
        flax: the modules of Flax can have it (see `jaxpeft.flax`).
        factors: what trains is the a and the b of products that are added to kernels,
            as optimizers made for LoRA take it.
        random: its start is drawn with the key that it is given; false: nothing in it
            is random, or it has a seed among its own keys.
        pads: what it draws for a smaller `r` is, padded with zeros, an adapter of a
            larger one: it computes the same, and training leaves the zeros alone.
        node: the class that it puts around a kernel, of a method that PEFT does not
            have: it is saved and loaded by its fields (`hf.peft.form`).
    """

    make: Callable[..., Any]
    wraps: bool = True
    heeds: tuple[str, ...] = (*MODULES, "bias")
    targets: str | tuple[str, ...] = ALL_LINEAR
    embedding: Callable[..., Any] | None = None
    gives_model: bool = False
    flax: bool = False
    factors: bool = False
    random: bool = True
    pads: bool = False
    node: type | None = None


_DOWN = ("o_proj", "down_proj", "c_proj")
_IA3 = ("k_proj", "v_proj", "down_proj", "c_attn", "mlp.c_proj")

TABLE = Table(
    rows={
        "bottleneck": Method(bottleneck, targets=_DOWN),
        "dora": Method(dora, heeds=COMMON, pads=True),
        "ia3": Method(ia3, targets=_IA3, random=False),
        "lora": Method(
            lora,
            heeds=COMMON,
            embedding=lora_embedding,
            flax=True,
            factors=True,
            pads=True,
        ),
        "lora_fa": Method(lora_fa, heeds=COMMON, flax=True, pads=True),
        "oft": Method(oft, random=False),
        "vera": Method(vera, random=False),
        "prefix_tuning": Method(prefix_tuning, wraps=False, heeds=()),
        "prompt_tuning": Method(prompt_tuning, wraps=False, heeds=()),
        "bitfit": Method(bitfit, wraps=False, heeds=()),
        "full": Method(full, wraps=False, heeds=MODULES, gives_model=True),
    },
    given={"base", "params", "key", "adapted", "names", "widest", "chosen"},
    all_say=keys.ALWAYS,
    some_say={
        # These are in the adapters' scales.
        **dict.fromkeys(("lora_alpha", "alpha_pattern", "use_rslora"), keys.NUMBER),
        **dict.fromkeys(("r", "rank_pattern"), keys.RANK),
    },
)

# Those that put adapters around kernels.
METHODS = {name: row.make for name, row in TABLE.rows.items() if row.wraps}


def of_embedding(name: str, path: str) -> Callable[..., Any]:
    """The function that puts an adapter of a method around an embedding.

    Args:
        name: the method, one of `TABLE`.
        path: the dotted path of the embedding, for the message.

    Returns:
        The method's `Method.embedding`.

    Raises:
        InputError: the method adapts linear modules only.
    """
    make = TABLE[name].embedding
    if make is None:
        raise InputError(
            f"adapter.target_modules: {path!r} is an embedding, which method {name!r} "
            "does not adapt; leave it out, or use lora"
        )
    return make
