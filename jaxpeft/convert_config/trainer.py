"""What transformers' TrainingArguments say, which LLaMA-Factory's files say too."""

import math
from typing import Any

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.convert_config.draft import Draft, Idle, Row, To, Without, names, truth
from jaxpeft.convert_config.optimizers import Optimizer, optimizer, schedule
from jaxpeft.convert_config.spread import SPREAD, spread

_LOADING = (
    "batches are made beside the step; data.num_workers says how many processes "
    "tokenize before it"
)
_COLUMNS = "data.train.format and columns say what of a record is read"
_SPEED = "how the step is compiled decides this here"
_LOG = "the log and metrics.jsonl are always written so"
_SAVED = "checkpoints are always whole, sealed and in the run directory"
_METRICS = (
    "evaluations measure loss, perplexity and accuracy, and what evaluation.metrics "
    "names (docs/evaluation.md); training.metric_for_best_model says which counts"
)
_HUB = "nothing is uploaded: `hf upload REPO RUN/adapter` afterwards"
_GENERATE = (
    "an option of `python -m jaxpeft.generate`; evaluations generate where "
    "evaluation.metrics names any"
)

ROWS: dict[str, Row] = {
    # where and how long
    "seed": To("seed"),
    "overwrite_output_dir": Idle(
        "a repeated command continues its run; name another output_dir to start over"
    ),
    "do_train": Idle("which command is run says this"),
    "do_eval": Idle("which command is run says this"),
    "do_predict": Idle("which command is run says this"),
    "resume_from_checkpoint": Without(
        "the same command continues from its own checkpoints by itself; one of torch "
        "cannot be continued, but its adapter can: adapter.init_from",
        off=(None, False, "", True),
    ),
    "ignore_data_skip": Idle("the data's position is always restored"),
    "restore_callback_states_from_checkpoint": Idle("all state is always restored"),
    "full_determinism": To("deterministic", truth),
    "save_only_model": Idle(_SAVED),
    "save_safetensors": Idle(_SAVED),
    "save_on_each_node": Idle(_SAVED),
    "enable_jit_checkpoint": Idle("SIGTERM always saves; the same command continues"),
    # data
    "dataloader_num_workers": Idle(_LOADING),
    "dataloader_pin_memory": Idle(_LOADING),
    "dataloader_persistent_workers": Idle(_LOADING),
    "dataloader_prefetch_factor": Idle(_LOADING),
    "dataloader_multiprocessing_context": Idle(_LOADING),
    "dataloader_in_order": Idle(_LOADING),
    "dataloader_drop_last": Idle("every batch is whole; epochs run into each other"),
    "remove_unused_columns": Idle(_COLUMNS),
    "label_names": Idle(_COLUMNS),
    "group_by_length": Without(
        "rows are padded to one of data.length_buckets lengths instead"
    ),
    "length_column_name": Idle(_COLUMNS),
    "accelerator_config": Idle(_SPEED),
    # numbers
    "average_tokens_across_devices": Idle(
        "the loss is always the mean over the batch's tokens, on any devices"
    ),
    "tf32": Idle("XLA_FLAGS and jax_default_matmul_precision say this"),
    "bf16_full_eval": Idle("evaluation computes as training does"),
    "fp16_full_eval": Idle("evaluation computes as training does"),
    "half_precision_backend": Idle(_SPEED),
    "fp16_opt_level": Idle(_SPEED),
    "fp16_backend": Idle(_SPEED),
    "label_smoothing_factor": To("objective.label_smoothing", off=(None, 0)),
    "neftune_noise_alpha": To("objective.neftune_noise_alpha", off=(None, 0)),
    "auto_find_batch_size": Without(
        "`python -m jaxpeft.plan --config FILE --device-memory GB` says what fits"
    ),
    # speed
    "gradient_checkpointing_kwargs": Idle(_SPEED),
    "activation_checkpointing_kwargs": Idle(_SPEED),
    "torch_compile": Idle(_SPEED),
    "torch_compile_backend": Idle(_SPEED),
    "torch_compile_mode": Idle(_SPEED),
    "torchdynamo": Idle(_SPEED),
    "jit_mode_eval": Idle(_SPEED),
    "use_ipex": Idle(_SPEED),
    "use_liger_kernel": Idle(_SPEED),
    "liger_kernel_config": Idle(_SPEED),
    "use_cache": Idle("training keeps no cache"),
    "torch_empty_cache_steps": Idle(_SPEED),
    "skip_memory_metrics": Idle(_SPEED),
    "use_cpu": Idle("JAX_PLATFORMS=cpu says this"),
    "no_cuda": Idle("JAX_PLATFORMS=cpu says this"),
    "use_mps_device": Idle("JAX_PLATFORMS says this"),
    "mp_parameters": Idle(SPREAD),
    # devices
    "local_rank": Idle(SPREAD),
    "ddp_backend": Idle(SPREAD),
    "ddp_find_unused_parameters": Idle(SPREAD),
    "ddp_bucket_cap_mb": Idle(SPREAD),
    "ddp_broadcast_buffers": Idle(SPREAD),
    "ddp_static_graph": Idle(SPREAD),
    "ddp_timeout": Idle("cluster.heartbeat_timeout says when a process counts as dead"),
    "parallelism_config": Without(
        "say how devices share the work with mesh: {data, fsdp, tensor, context}"
    ),
    "fsdp_min_num_params": Idle(SPREAD),
    "fsdp_transformer_layer_cls_to_wrap": Idle(SPREAD),
    "tpu_num_cores": Idle(SPREAD),
    "tpu_metrics_debug": Idle(SPREAD),
    # log
    "logging_dir": Idle(_LOG),
    "logging_nan_inf_filter": Idle("a step that is not finite is skipped and counted"),
    "log_on_each_node": Idle(_LOG),
    "log_level": Idle(_LOG),
    "log_level_replica": Idle(_LOG),
    "disable_tqdm": Idle(_LOG),
    "include_num_input_tokens_seen": Idle(_LOG),
    "include_tokens_per_second": Idle(_LOG),
    "logging_first_step": Idle(_LOG),
    "debug": Idle(_LOG),
    "run_name": Idle("output_dir names the run"),
    "project": Idle("output_dir names the run"),
    "trackio_space_id": Idle("output_dir names the run"),
    "trackio_bucket_id": Idle("output_dir names the run"),
    "trackio_static_space_id": Idle("output_dir names the run"),
    # evaluation
    "eval_delay": Without("evaluation begins with the run; set training.eval_steps"),
    "eval_accumulation_steps": Idle("evaluation keeps sums, never logits"),
    "eval_do_concat_batches": Idle("evaluation keeps sums, never logits"),
    "eval_use_gather_object": Idle("evaluation keeps sums, never logits"),
    "batch_eval_metrics": Idle("evaluation keeps sums, never logits"),
    "prediction_loss_only": Idle("evaluation keeps sums, never logits"),
    "include_inputs_for_metrics": Without(_METRICS),
    "include_for_metrics": Without(_METRICS, off=(None, [], ())),
    "metric_for_best_model": Without(
        _METRICS, off=(None, "loss", "eval_loss", "eval_eval_loss")
    ),
    "greater_is_better": Idle(
        "known of each metric that training.metric_for_best_model can name"
    ),
    "predict_with_generate": Idle(_GENERATE),
    "generation_max_length": Idle(_GENERATE),
    "generation_num_beams": Idle(_GENERATE),
    "generation_config": Idle(_GENERATE),
    "sortish_sampler": Idle("rows are padded to one of data.length_buckets lengths"),
    # hub
    "push_to_hub": Without(_HUB),
    "push_to_hub_model_id": Without(_HUB),
    "push_to_hub_organization": Without(_HUB),
    "push_to_hub_token": Idle(_HUB),
    "hub_model_id": Without(_HUB),
    "hub_token": Idle(_HUB),
    "hub_strategy": Idle(_HUB),
    "hub_private_repo": Idle(_HUB),
    "hub_always_push": Idle(_HUB),
    "hub_revision": Idle(_HUB),
}

_SINKS = ("tensorboard", "wandb", "trackio")
_EVERY = {"logging": 500, "save": 500}  # steps, by the Trainer's defaults


def translate(
    draft: Draft, devices: int, instead: Optimizer | None = None, rows: int = 1
) -> None:
    """Translates all that the Trainer reads, but for precision, which needs the method.

    Args:
        draft: gives their keys and takes ours; its `adapter.method` is set.
        devices: over how many the batch was spread.
        instead: the optimizer that stands in the place of that of `optim`.
        rows: how many sequences a record is, 2 for a pair: theirs count records.

    Raises:
        InputError: text in `optim_args` or `lr_scheduler_kwargs` cannot be read.
    """
    length(draft)
    batch(draft, devices, rows)
    optimizer(draft, instead)
    schedule(draft)
    for kind in _EVERY:
        every(draft, kind)
    limit = draft.whole("save_total_limit", 0)
    draft.set("training.save_total_limit", limit if limit > 0 else None)
    evaluation(draft, devices, rows)
    order(draft)
    sinks(draft)
    spread(draft)
    if draft.given("output_dir"):
        draft.set("output_dir", draft.take("output_dir"))
    else:
        draft.set("output_dir", "runs/converted", "not said there")
    _gradients(draft)


def _gradients(draft: Draft) -> None:
    """LOMO's and AdaLomo's backward pass, which has no gradients to add up."""
    said = draft.settings
    parts = said.get("training.gradient_accumulation_steps", 1)
    fused = TABLES["optimizer"][said["optimizer.name"]].fused
    if fused and TABLES["adapter"][said["adapter.method"]].gives_model and parts > 1:
        remark = "gradients are kept, to add up the parts of a batch; without parts "
        remark += "they never all exist"
        draft.set("training.fused_backward", False, remark)


def precision(draft: Draft, method: str) -> None:
    """Sets the dtype of base and activations by `bf16`, `fp16` and `pure_bf16`.

    Args:
        draft: gives their keys and takes ours.
        method: the method of our adapter. With `full`, what trains is stored in that
            dtype as well.
    """
    half, brain = draft.flag("fp16"), draft.flag("bf16")
    full = TABLES["adapter"][method].gives_model
    pure = draft.flag("pure_bf16")
    mixed = half and not brain and not pure
    if mixed and not full:
        draft.set("model.dtype", "float16")
    elif brain or pure:
        draft.set("model.dtype", "bfloat16")
    elif mixed:
        remark = "float16 there, where what trains is stored in float32; here it is "
        remark += "stored in model.dtype, and bfloat16 is faster where devices have it"
        draft.set("model.dtype", "float32", remark)
    else:
        remark = "not said there, where it follows the checkpoint's own dtype"
        draft.set("model.dtype", "bfloat16", remark)
    if full and not pure and not mixed:
        draft.remark("model.dtype", _STORED)


_STORED = (
    "what trains is stored in it, too; there that is float32 (LLaMA-Factory always, "
    "the Trainer where the model was loaded so): say float32 for that, at twice the "
    "memory"
)


def length(draft: Draft) -> None:
    """Sets how long the run is: `max_steps` above 0, or else `num_train_epochs`."""
    steps, epochs = draft.whole("max_steps", -1), draft.number("num_train_epochs", 3.0)
    if steps > 0:
        draft.set("training.max_steps", steps)
        draft.skip("num_train_epochs", "max_steps counts")
    else:
        draft.set("training.num_epochs", float(epochs))


def batch(draft: Draft, devices: int, rows: int = 1) -> None:
    """Sets our batch, which is that of a step: over all devices and parts together.

    Args:
        draft: gives their keys and takes ours.
        devices: over how many the batch was spread.
        rows: how many sequences a record is.
    """
    size = draft.whole("per_device_train_batch_size", 8)
    parts = draft.whole("gradient_accumulation_steps", 1)
    total = size * parts * devices * rows
    word = "device" if devices == 1 else "devices"
    remark = (
        f"of a whole step: {size} a device x {parts} accumulated x {devices} {word}"
    )
    remark += f" x {rows} sequences of a pair" * (rows > 1)
    draft.set("training.batch_size", total, remark)
    if parts > 1:
        draft.set("training.gradient_accumulation_steps", parts)


def steps_of(draft: Draft, key: str, default: int) -> int | None:
    """A number of steps; below 1 a share of `max_steps`, None where that is not set.

    Args:
        draft: gives their keys; its `training.max_steps` is set if there is one.
        key: their key.
        default: the value where their file says nothing, in steps.
    """
    value = draft.number(key, default)
    if value >= 1:
        return int(value)
    total = draft.settings.get("training.max_steps")
    return None if total is None else max(1, math.ceil(value * total))


def every(draft: Draft, kind: str) -> None:
    """Sets how often the run logs, or saves, by the strategy and the steps of that.

    Args:
        draft: gives their keys and takes ours.
        kind: `logging` or `save`, the beginning of their keys' names.
    """
    strategy, key = draft.take(f"{kind}_strategy", "steps"), f"{kind}_steps"
    steps = steps_of(draft, key, _EVERY[kind])
    ours = f"training.{key}"
    if strategy == "no":
        draft.skip(f"{kind}_strategy", f"the end of a run always counts; see {ours}")
    elif strategy != "steps":
        draft.lack(f"{kind}_strategy", _in_steps(strategy, ours))
    elif steps is None:
        draft.lack(key, _SHARE.format(ours))
    else:
        draft.set(ours, steps)


_SHARE = "is a share of a run whose length is not set; give {}"


def _in_steps(strategy: Any, ours: str) -> str:
    return (
        f"{strategy!r} is not counted here; give {ours}: an epoch is the number of "
        "examples divided by training.batch_size"
    )


def evaluation(draft: Draft, devices: int, rows: int = 1) -> None:
    """Sets when to evaluate, in which batches, and when to stop early.

    Args:
        draft: gives their keys and takes ours; its data are set.
        devices: over how many a batch was spread.
        rows: how many sequences a record is.
    """
    strategy = draft.take("eval_strategy", draft.take("evaluation_strategy", "no"))
    logged = draft.settings.get("training.logging_steps", _EVERY["logging"])
    steps = steps_of(draft, "eval_steps", logged)
    size = draft.whole("per_device_eval_batch_size", 8) * devices * rows
    patience = draft.take("early_stopping_steps")
    best = draft.flag("load_best_model_at_end")
    if not {"data.eval", "data.eval_split"} & set(draft.settings):
        _without_evaluation(draft, strategy, patience, best)
        return
    draft.set("data.eval_batch_size", size)
    if strategy == "steps" and steps is not None:
        draft.set("training.eval_steps", steps)
    elif strategy == "steps":
        draft.lack("eval_steps", _SHARE.format("training.eval_steps"))
    elif strategy == "no":
        draft.set("training.eval_steps", None, "evaluated at the end only")
    else:
        draft.lack("eval_strategy", _in_steps(strategy, "training.eval_steps"))
    if patience is not None:
        draft.set("training.early_stopping_patience", patience)
    if best:
        draft.set("training.load_best_model_at_end", True)
    if draft.given("eval_on_start"):
        draft.set("training.eval_on_start", draft.flag("eval_on_start"))


def _without_evaluation(draft: Draft, strategy: Any, patience: Any, best: bool) -> None:
    for key in ("eval_steps", "per_device_eval_batch_size", "eval_on_start"):
        draft.skip(key, "no evaluation data are named")
    need = (
        "needs evaluation data: convert with --eval-data FILE, or give "
        "data.eval_split and training."
    )
    if strategy != "no":
        key = "eval_strategy" if draft.given("eval_strategy") else "evaluation_strategy"
        draft.lack(key, f"{need}eval_steps")
    if patience is not None:
        draft.lack("early_stopping_steps", f"{need}early_stopping_patience: {patience}")
    if best:
        draft.lack("load_best_model_at_end", f"{need}load_best_model_at_end: true")


def order(draft: Draft) -> None:
    """Sets the order of the examples."""
    sampling = draft.take("train_sampling_strategy", "random")
    if sampling == "sequential":
        draft.set("data.shuffle", False)
    elif sampling != "random":
        draft.lack(
            "train_sampling_strategy",
            "rows are padded to one of data.length_buckets lengths instead",
        )
    data_seed = draft.take("data_seed")
    if data_seed is not None and data_seed != draft.keys.get("seed", 42):
        draft.lack("data_seed", "one seed draws everything: give seed")


def sinks(draft: Draft) -> None:
    """Sets by `report_to` where the curves go beside the run directory."""
    wanted = [name for name in names(draft.take("report_to", [])) if name != "none"]
    wanted = ["all"] if "all" in wanted else wanted
    for name in wanted:
        if name not in (*_SINKS, "all"):
            draft.lack(
                f"report_to: {name}",
                f"can be {', '.join(_SINKS)}; or read metrics.jsonl",
            )
    known = [name for name in wanted if name in (*_SINKS, "all")]
    if known:
        draft.set("training.report_to", known)
