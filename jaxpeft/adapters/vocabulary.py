"""The two ends of a model that know its tokens, embedding and head, as one or as two.

Where they share a table (tie_word_embeddings) the params hold no head. Whatever is to
stand in the head alone then needs a place of its own, and what is to stand in the
embedding alone must leave the head the table as it was.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxpeft import kernel, tree
from jaxpeft.adapters import targets
from jaxpeft.adapters.saved import Saved
from jaxpeft.adapters.tokens import Tokens, tokens_of
from jaxpeft.errors import InputError

HEAD, EMBEDDING = "lm_head", "model.embed_tokens"  # the modules' paths
HEAD_LEAF, EMBEDDING_LEAF = f"{HEAD}.kernel", f"{EMBEDDING}.embedding"
SAVE, TOKENS = "adapter.modules_to_save", "adapter.trainable_token_indices"
TYING = "adapter.ensure_weight_tying"

Indices = Sequence[int] | Mapping[str, Sequence[int]]


def is_tied(params: Mapping[str, Any]) -> bool:
    """Whether the head of these params is the embedding's table."""
    apart = HEAD in params or "score" in params
    return not apart and EMBEDDING_LEAF in dict(tree.walk(params))


def opened(params: Mapping[str, Any], wanted: Iterable[Any]) -> dict[str, Any]:
    """The params, with a head in its place if a setting means one that is tied.

    Args:
        params: of a base.
        wanted: the settings that name modules: lists of names, or expressions.
    """
    if not is_tied(params) or not any(map(_means_head, wanted)):
        return dict(params)
    return with_head(params)


def with_head(params: Mapping[str, Any]) -> dict[str, Any]:
    """The params with the matrix that the head multiplies with in a place of its own.

    Args:
        params: of a model, whose head may be tied.
    """
    if not is_tied(params):
        return dict(params)
    table = kernel.of_head(dict(tree.walk(params))[EMBEDDING_LEAF])
    return {**params, HEAD: {"kernel": table.T}}


def _means_head(wanted: Any) -> bool:
    if isinstance(wanted, str):
        everything = wanted == targets.ALL_LINEAR
        return not everything and targets.is_named(HEAD, wanted, "adapter")
    return any(targets.is_hit(HEAD, entry) for entry in wanted or ())


def closed(
    params: Mapping[str, Any], changes: Mapping[str, Any], *, tied: bool, one: bool
) -> dict[str, Any]:
    """The params with nodes in their places, and each end reading what it should.

    Args:
        params: as `opened` gives them.
        changes: {dotted name of a weight: the node in its place}.
        tied: whether the base's ends are one table.
        one: whether they stay one where the embedding trains as a whole.
    """
    changes, leaves = dict(changes), dict(tree.walk(params))
    has_own = HEAD_LEAF in changes or kernel.is_adapter(leaves.get(HEAD_LEAF))
    if tied and not has_own:
        params = {name: part for name, part in params.items() if name != HEAD}
        node = changes.get(EMBEDDING_LEAF)
        if isinstance(node, Saved) and node.trains and not one:
            base = leaves[EMBEDDING_LEAF]
            changes[EMBEDDING_LEAF] = dataclasses.replace(node, base=base)
    elif tied and HEAD not in params:
        params = {**params, HEAD: {"kernel": None}}
    return tree.replace(params, changes)


def as_one(
    whole: Mapping[str, list[str]], common: Mapping[str, Any], *, tied: bool
) -> dict[str, list[str]]:
    """The modules that train whole, where `ensure_weight_tying` keeps both ends one.

    Either end that is named means the embedding then, which the head goes on sharing.

    Args:
        whole: {path of a module: the dotted names of its weights}.
        common: the settings of the adapter.
        tied: whether the base's ends are one table.

    Raises:
        InputError: there is nothing to tie, or what is would be two LoRAs.
    """
    if not common.get("ensure_weight_tying"):
        return dict(whole)
    named = {HEAD, EMBEDDING} & set(whole)
    if not tied:
        raise InputError(
            f"{TYING}: found true, and this base has a head of its own "
            "(tie_word_embeddings false), so that nothing is tied; leave it out, and "
            "name both embed_tokens and lm_head where both are to train"
        )
    if not named and common.get("trainable_token_indices") is None:
        raise InputError(
            f"{TYING}: found true, and neither modules_to_save nor "
            "trainable_token_indices names the embedding or the head; name one of "
            "them, or leave it out"
        )
    others = {path: names for path, names in whole.items() if path != HEAD}
    return {**others, EMBEDDING: [EMBEDDING_LEAF]} if named else others


def refuse_tied_loras(chosen: Iterable[str], common: Mapping[str, Any]) -> None:
    """Checks that no LoRA of the embedding or the head is wanted as one for both.

    Args:
        chosen: the paths of the modules that get an adapter.
        common: the settings of the adapter.

    Raises:
        InputError: `ensure_weight_tying` is set, and one of the ends is among them.
    """
    ends = [path for path in (EMBEDDING, HEAD) if path in chosen]
    if ends and common.get("ensure_weight_tying"):
        raise InputError(
            f"{TYING}: found true with {ends[0]!r} in target_modules; one LoRA for "
            "both ends is not handled (PEFT trains it twice in each step, and merges "
            "it wrong): name embed_tokens in modules_to_save, or tokens in "
            "trainable_token_indices"
        )


def token_nodes(
    params: Mapping[str, Any],
    common: Mapping[str, Any],
    names: targets.Names,
    taken: Iterable[str],
    *,
    tied: bool,
) -> dict[str, Tokens]:
    """The nodes of the tokens that train, {dotted name of a weight: node}.

    As in PEFT, a list is of the embedding, and a tied head has the same vectors unless
    it is named with other tokens.

    Args:
        params: as `opened` gives them.
        common: the settings of the adapter, `trainable_token_indices` among them.
        names: of the modules, by path.
        taken: the paths of the modules that train in another way.
        tied: whether the base's ends are one table.

    Raises:
        InputError: a module or a token is not there, or trains in two ways.
    """
    given = common.get("trainable_token_indices")
    if given is None:
        return {}
    chosen = _by_path(given, names)
    both = EMBEDDING in chosen and HEAD in chosen
    if tied and both and set(chosen[EMBEDDING]) == set(chosen[HEAD]):
        del chosen[HEAD]
    elif tied and both and common.get("ensure_weight_tying"):
        raise InputError(
            f"{TYING}: found true with other tokens for the embedding than for the "
            f"head in {TOKENS}; give both the same, or leave it out"
        )
    shared = tied and HEAD not in chosen
    _refuse_twice({*chosen, HEAD} if shared else set(chosen), taken, names)
    leaves = dict(tree.walk(params))
    _check_range(chosen, leaves[EMBEDDING_LEAF].shape[0])
    nodes = {}
    for path, indices in chosen.items():
        leaf, is_head = (HEAD_LEAF, True) if path == HEAD else (EMBEDDING_LEAF, False)
        nodes[leaf] = tokens_of(
            leaves[leaf], indices, is_head=is_head, tied=shared and not is_head
        )
    return nodes


def _by_path(given: Indices, names: targets.Names) -> dict[str, tuple[int, ...]]:
    """{path of the embedding or the head: its tokens}."""
    if not isinstance(given, Mapping):
        return {EMBEDDING: tuple(given)}
    called = {EMBEDDING: names.get(EMBEDDING, [EMBEDDING])[0], HEAD: HEAD}
    chosen = {}
    for entry, indices in given.items():
        paths = [
            path
            for path, name in called.items()
            if targets.is_hit(name, entry) or targets.is_hit(path, entry)
        ]
        if not paths:
            raise InputError(
                f"{TOKENS}: {entry!r} is neither the embedding, "
                f"{called[EMBEDDING]!r}, nor the head, {HEAD!r}"
            )
        chosen[paths[0]] = tuple(indices)
    return chosen


def _check_range(chosen: Mapping[str, Sequence[int]], rows: int) -> None:
    """Raises InputError for tokens that are none, beyond the rows, or named twice."""
    problems = []
    for path, indices in chosen.items():
        strange = [i for i in indices if not 0 <= i < rows]
        if not indices:
            problems.append(
                f"{TOKENS}: found no token for {path!r}; name one, or leave it out"
            )
        if strange:
            problems.append(
                f"{TOKENS}: found {strange[0]}; the base's embedding has {rows} rows, "
                f"for tokens 0 to {rows - 1} (config.json: vocab_size). Tokens that "
                "were added to the tokenizer need rows first: see docs/methods.md, "
                "Adding tokens"
            )
        if len(set(indices)) < len(indices):
            twice = next(i for i in indices if list(indices).count(i) > 1)
            problems.append(f"{TOKENS}: found {twice} twice; name each token once")
    if problems:
        raise InputError(*problems)


def _refuse_twice(
    ends: Iterable[str], taken: Iterable[str], names: targets.Names
) -> None:
    both = sorted(set(ends) & set(taken))
    if both:
        name = names.get(both[0], [both[0]])[0]
        raise InputError(
            f"{TOKENS}: {name!r} is trained as a whole (modules_to_save) or has an "
            "adapter (target_modules) as well, itself or as the head that shares the "
            "table; leave it out of all but one"
        )
