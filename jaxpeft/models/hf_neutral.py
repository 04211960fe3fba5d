"""Fields of `config.json` that change nothing: some ever, others at a certain value.

What transformers does is the rule: a field that it does not read for a family is
neutral at the value that describes the model that it builds then.
"""

from collections.abc import Mapping
from typing import Any

# Fields that say nothing about the mathematics of a forward pass. Those that name
# code (`auto_map`, `_attn_implementation_internal`) are never followed.
INERT = frozenset(
    """architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id
    id2label is_decoder is_encoder_decoder label2id model_type name_or_path
    output_attentions output_hidden_states pad_token_id pretraining_tp problem_type
    return_dict task_specific_params tokenizer_class torch_dtype transformers_version
    unk_token_id use_cache

    attn_implementation cache_implementation classifier_dropout finetuning_task
    gradient_checkpointing is_llama_config is_qwen2_config num_labels output_past
    prefix sep_token_id tf_legacy_loss tokenizer_model_max_length tokenizer_padding_side
    torchscript transformers.js_config use_bfloat16 use_flash_attn

    max_sequence_length model_max_length seq_length

    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty
    do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length max_new_tokens min_length no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    temperature top_k top_p typical_p""".split()
)
PREFIXES = ("_", "unsloth_")  # transformers' own, and how unsloth marks its copies

# {field: its neutral values}, for every family that does not read the field itself.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attn_pdrop": (0,),
    "full_attn_mod": (1,),  # every layer attends alike
    "hidden_dropout": (0,),
    "interpolate_factor": (1,),
    "lm_head_bias": (False,),
    "mlp_bias": (False,),
    "neftune_noise_alpha": (0,),
    "partial_rotary_factor": (1,),
    "pruned_heads": ({}, []),
    "qkv_bias": (False,),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
    "use_qk_norm": (False,),
}
# The same by model_type, in place of the above.
OF_FAMILY: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "cohere2": {
        "order_of_interleaved_layers": ("local_attn_first",),
        "position_embedding_type": ("rope_gptj",),
        "rotary_pct": (1,),
        "use_embedding_sharing": (True,),
        "use_parallel_embedding": (True, False),
    },
    "gpt2": {"n_special": (0,), "predict_special_tokens": (True, False)},
    "qwen2": {"attention_bias": (True,), "qkv_bias": (True,)},
    "qwen3": {"use_qk_norm": (True,)},
    "starcoder2": {
        "attention_softmax_in_fp32": (True, False),
        "mlp_type": ("default",),
        "norm_type": ("layer_norm",),
        "scale_attention_softmax_in_fp32": (True, False),
        "scale_attn_weights": (True,),
    },
    "qwen3_moe": {"shared_expert_intermediate_size": (0,), "use_qk_norm": (True,)},
}
# {field: another that says the same}: neutral where both have one value.
TWINS: Mapping[str, str] = {
    "layer_norm_epsilon": "rms_norm_eps",
    "sliding_window_size": "sliding_window",
}


def is_neutral(hf: Mapping[str, Any], name: str) -> bool:
    """Whether a field that the family does not read leaves the model as it is.

    Args:
        hf: the content of `config.json`.
        name: of a field in it.
    """
    value = hf[name]
    if value is None or name in INERT or name.startswith(PREFIXES):
        return True
    if name in TWINS:
        return value == hf.get(TWINS[name])
    own = OF_FAMILY.get(str(hf.get("model_type")), {})
    return value in own.get(name, NEUTRAL.get(name, ()))
