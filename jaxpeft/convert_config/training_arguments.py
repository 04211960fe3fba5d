"""From transformers' TrainingArguments as JSON, TRL's configs, and PEFT's."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.convert_config import files, peft_config, trainer, trl
from jaxpeft.convert_config.draft import Draft, Idle, Row, To, Without, truth

MODEL, DATA = "MODEL", "train.json"
LENGTH = 1024  # by TRL's default

_TOKENIZER = "the tokenizer in the model's folder says this; change it there"
_READING = "data.num_workers says how many processes read and tokenize"

# What TRL's SFTConfig has besides.
SFT: dict[str, Row] = {
    "packing": To("data.packing", truth),
    "packing_strategy": Without(
        "rows are filled with whole examples, in order; none is cut between two",
        off=(None, "bfd"),
    ),
    "eval_packing": Idle("evaluation is never packed"),
    "padding_free": Idle("rows are padded to one of data.length_buckets lengths"),
    "pad_to_multiple_of": Idle("rows are padded to one of data.length_buckets lengths"),
    "truncation_mode": Without(
        "the beginning of an example that is too long is kept", off=(None, "keep_start")
    ),
    "shuffle_dataset": Idle(
        "data.shuffle: examples are shuffled unless told otherwise"
    ),
    "dataset_text_field": Without(
        "name the column with data.train: {format: text, fields: {text: COLUMN}}",
        off=(None, "text"),
    ),
    "dataset_kwargs": Idle(_READING),
    "dataset_num_proc": Idle(_READING),
    "dataset_batch_size": Idle(_READING),
    "model_init_kwargs": Without(
        "say the dtype with model.dtype and few bits with model.quantization",
        off=(None, {}),
    ),
    "trust_remote_code": Idle("a model's code is never run; its family is built in"),
    "chat_template_path": Without(_TOKENIZER),
    "eos_token": Without(_TOKENIZER),
    "pad_token": Idle("masks go by position; which token pads does not matter"),
    "loss_type": To("objective.loss_type", off=(None, "nll", "chunked_nll")),
    "router_aux_loss_coef": trl.ROUTER,
    "activation_offloading": Without(
        "set model.offload: activations, if `plan` says that it does not fit without"
    ),
}


def from_training_arguments(
    keys: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
    *,
    devices: int = 1,
    model: str | None = None,
    data: str | None = None,
    eval_data: str | None = None,
) -> Draft:
    """What `TrainingArguments.to_json_string()` says, in our keys.

    Args:
        keys: the content of that JSON.
        adapter: the content of PEFT's adapter_config.json; None: the whole model
            trains, as the Trainer does with a plain model.
        devices: over how many the batch was spread.
        model: the path of the model, which the Trainer is handed in Python, like the
            data, and its arguments do not know.
        data: the path of the examples.
        eval_data: the path of the examples that evaluate.

    Raises:
        InputError: all problems at once, for what cannot be trained here.
    """
    draft, kind = Draft(keys), trl.trainer_of(keys)
    if adapter is None:
        draft.set("adapter.method", "full", "no --peft was given")
        base = None
    else:
        base = peft_config.translate(draft, adapter, model)
    if model or base:
        draft.set("model.path", model or base)
    else:
        draft.set("model.path", MODEL, "TODO: a local folder or a hub id")
        draft.lack("model", "is no training argument; give --model, or model.path")
    trainer.precision(draft, draft.settings["adapter.method"])
    _checkpointing(draft)
    _length(draft, model or base)
    layout = {} if kind is None else {"format": "messages"}
    if data:
        draft.set("data.train", {"path": data} | layout)
    else:
        remark = "TODO: your file, and its format if it is not alpaca"
        draft.set("data.train", {"path": DATA} | layout, remark)
        draft.lack(
            "train_dataset", "is no training argument; give --data, or data.train"
        )
    if eval_data:
        draft.set("data.eval", {"path": eval_data} | layout)
    trainer.translate(draft, devices, rows=2 if kind in trl.PAIRS else 1)
    if kind is None:
        _supervision(draft)
    else:
        trl.objective(draft, kind)
    draft.apply({**trainer.ROWS, **SFT, **({} if kind is None else trl.ROWS)})
    return draft


def _supervision(draft: Draft) -> None:
    """Which tokens count in TRL's loss; plain training arguments do not say."""
    asked = [draft.take(f"{kind}_only_loss") for kind in ("assistant", "completion")]
    if True in asked:
        draft.set("data.train_on", "assistant")
    elif False in asked:
        remark = (
            "TRL learns prompts too unless assistant_only_loss is set; of examples "
        )
        remark += "that are prompt and completion it learns the completion alone"
        draft.set("data.train_on", "all", remark)


def _checkpointing(draft: Draft) -> None:
    asked = [draft.flag(f"{kind}_checkpointing") for kind in ("gradient", "activation")]
    if any(asked):
        draft.set("model.remat", "full")


def _length(draft: Draft, model: Any) -> None:
    """TRL's `max_length`, of which null means that nothing is cut."""
    length = draft.whole("max_length", draft.whole("max_seq_length", LENGTH))
    remark = ""
    if not {"max_length", "max_seq_length"} & set(draft.keys):
        remark = "not said there, where examples come as tokens; longer ones are cut"
    elif "max_length" in draft.keys and not draft.given("max_length"):
        context = files.model_config(model).get("max_position_embeddings")
        if isinstance(context, int):
            length, remark = (
                context,
                "nothing is cut there; this is the model's context",
            )
        else:
            draft.lack("max_length", _UNCUT)
    draft.set("data.max_length", length, remark)


_UNCUT = (
    "null cuts nothing there; raise data.max_length to your longest example, at most "
    "to the model's context"
)
