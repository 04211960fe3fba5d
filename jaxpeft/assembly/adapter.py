"""The adapter that a configuration asks for, on the params of a base."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from jaxpeft import adapters, console, hf, kernel, models, tree
from jaxpeft.adapters.saved import save
from jaxpeft.assembly import heads, precision
from jaxpeft.assembly.base import Base
from jaxpeft.config import AdapterSection
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig
from jaxpeft.models.scores import LEAF, SCORE

TARGETS = "target_modules"


def check_adapter(base: Base, section: AdapterSection) -> None:
    """Checks that the adapter fits the base, before any weight is read.

    Args:
        base: the opened model.
        section: the section `adapter` of the configuration.

    Raises:
        InputError: where the method does not go with an adapter to continue from or
            with the base's quantization, where no module can be adapted so, or where
            the result could not be written.
    """
    gives_model, method = gives_a_model(section), section.method
    if gives_model and section.init_from is not None:
        raise InputError(
            f"adapter.init_from: found {section.init_from!r} beside method {method}, "
            "which has no adapter; remove it, or merge that adapter first (jaxpeft "
            "export)"
        )
    _check_head(base.cfg, section)
    if gives_model and base.section.quantization != "none":
        raise InputError(
            f"model.quantization: found {base.section.quantization!r} with "
            f"adapter.method {method}; few bits cannot train: use none, or an adapter"
        )
    if section.init_from is None:
        inject = functools.partial(
            adapters.inject,
            rules=rules_for(section, base.cfg),
            names=models.module_names(base.cfg),
        )
        params = jax.eval_shape(
            lambda params, key: inject(params, key=key),
            base.shapes(),
            jax.random.key(0),
        )
        if base.scales_loss:
            precision.check_trained(params)
        if not gives_a_model(section):  # the result of which is a model, no adapter
            hf.check_writable(params, base.cfg)
            _check_scale(section.options)
            _warn_of_parting(params, base.cfg)


def add_adapter(
    params: Mapping[str, Any], section: AdapterSection, cfg: ModelConfig, key: jax.Array
) -> dict[str, Any]:
    """The params with a new adapter, or with the one of `init_from`.

    What the configuration says of an adapter to continue from (`r`, `lora_alpha`,
    `target_modules`) must agree with it; what it does not say is the adapter's own.

    Args:
        params: the base's weights, nested mappings.
        section: the section `adapter` of the configuration.
        cfg: the hyperparameters of the base.
        key: the random key that a new adapter is drawn with.
    """
    names, rules = models.module_names(cfg), rules_for(section, cfg)
    params = heads.with_head(params, cfg, key)
    if section.init_from is None:
        return adapters.inject(params, rules, key, names)
    patterns = {"rank_pattern", "alpha_pattern"}
    shaping = {"r", "lora_alpha", "use_rslora", *patterns} & set(section.options)
    given = {TARGETS} & section.model_fields_set
    others = (name for name in adapters.COMMON if name != TARGETS)
    given |= {name for name in others if _says_something(section, name)}
    if shaping or given:
        zeros = {**rules, "init_lora_weights": "zero"}
        params = adapters.inject(params, zeros, key, names)
    params = hf.load_adapter(params, hf.resolve(section.init_from), cfg)
    if not heads.trains(params):  # that adapter was none of scores
        params = tree.replace(params, {LEAF: save(params[SCORE]["kernel"])})
    dropout = section.options.get("lora_dropout")
    if dropout is None:
        return dict(params)
    changes = {
        name: dataclasses.replace(node, dropout=dropout)
        for name, node in kernel.nodes(params).items()
        if kernel.dropout_rate(node) is not None
    }
    return tree.replace(params, changes)


def _warn_of_parting(params: Mapping[str, Any], cfg: ModelConfig) -> None:
    """Says where embedding and head, one table in the base, will be two."""
    if cfg.tie_word_embeddings and "lm_head" in adapters.parted(params):
        console.remark(
            "adapter: in this base the head is the embedding (tie_word_embeddings), "
            "and what trains here is in one of them alone, or in each by itself: "
            "merged, the model has a head of its own. With modules_to_save, "
            "ensure_weight_tying: true keeps them one"
        )


def _check_scale(options: Mapping[str, Any]) -> None:
    """Checks that not every adapter's scale is zero, so that none has a form.

    A layer of scale 0 is one that an adapter leaves out. Raises InputError where all
    are.
    """
    patterns = (options.get("alpha_pattern") or {}).values()
    if options.get("lora_alpha") == 0 and not any(patterns):
        raise InputError(
            f"adapter.lora_alpha: found {options['lora_alpha']}, at which no adapter "
            "ever changes its base, and none could be saved; give more than 0, such as "
            "the value of adapter.r"
        )


def _says_something(section: AdapterSection, name: str) -> bool:
    return getattr(section, name) != AdapterSection.model_fields[name].default


def gives_a_model(section: AdapterSection) -> bool:
    """Whether the base itself trains, and the result is a model and no adapter."""
    return adapters.TABLE[section.method].gives_model


def trains_all(section: AdapterSection) -> bool:
    """Whether every weight of the base trains: the base does, and no part is named."""
    named = any(_says_something(section, name) for name in adapters.COMMON)
    given = any(value is not None for value in section.options.values())
    return gives_a_model(section) and not named and not given


def rules_for(section: AdapterSection, cfg: ModelConfig) -> dict[str, Any]:
    """`rules_of` a section, for a base whose head of scores trains as a whole.

    Args:
        section: the section `adapter` of the configuration.
        cfg: the hyperparameters of the base.

    Raises:
        InputError: see `rules_of`.
    """
    rules = rules_of(section)
    if not cfg.num_labels or trains_all(section):
        return rules
    return {**rules, "modules_to_save": (*rules.get("modules_to_save", ()), SCORE)}


def _check_head(cfg: ModelConfig, section: AdapterSection) -> None:
    """Raises InputError where a method's files have no place for a head of scores."""
    method = adapters.TABLE[section.method]
    if cfg.num_labels and not method.wraps and not method.gives_model:
        raise InputError(
            f"adapter.method: found {section.method!r}; the head of scores trains as "
            "well, for which its files have no place: use lora, or another method that "
            "has modules_to_save"
        )


def rules_of(section: AdapterSection) -> dict[str, Any]:
    """The keywords of `adapters.inject`: a section's method, and the keys it gives.

    Args:
        section: the section `adapter` of the configuration.

    Returns:
        {keyword: value}, `method` among them.

    Raises:
        InputError: where keys of an adapter are given beside a method without one.
    """
    given = {
        name: getattr(section, name)
        for name in adapters.COMMON
        if name in section.model_fields_set
    }
    heeds = adapters.TABLE[section.method].heeds
    # What it targets is said by the default, too, which any method may meet.
    useless = [name for name in given if name not in (TARGETS, *heeds)]
    idle = [name for name in useless if _says_something(section, name)]
    if idle:
        raise InputError(
            f"adapter.{idle[0]}: found {given[idle[0]]!r} with method "
            f"{section.method}, which has no use for it; remove it, or use lora"
        )
    given = {name: value for name, value in given.items() if name in heeds}
    return {"method": section.method, **given, **section.options}
