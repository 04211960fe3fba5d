"""The sections of a configuration: every key, its type, its default, its meaning."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False
    )


class ComponentSection(_Section):
    """A section that names a component; `options` are that component's own keys."""

    model_config = ConfigDict(extra="allow")
    selector: ClassVar[str] = "name"

    @property
    def choice(self) -> str:
        """The component's name."""
        return getattr(self, self.selector)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that this section leaves to the component."""
        return dict(self.model_extra or {})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _sinks(value: Any) -> Any:
    """As transformers reads `report_to`: one name or several, "none" for none."""
    names = _tuple([value] if isinstance(value, str) else value)
    return () if names is None or names == ("none",) else names


class ModelSection(_Section):
    """The frozen base model."""

    path: Text = Field(
        description="a local directory in Hugging Face format, or a hub id"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="of the frozen base and the activations"
    )
    quantization: Literal["none", "int8", "nf4", "nf4_single"] = Field(
        default="none",
        description="how the frozen base is stored; nf4_single is nf4 without double "
        "quantization of its scales; a checkpoint in bitsandbytes' nf4 stays as it is",
    )
    quantization_skip: Annotated[tuple[Text, ...], BeforeValidator(_tuple)] = Field(
        default=(),
        description="names of layers' modules that are stored whole, such as down_proj",
    )
    remat: Literal["none", "full", "dots"] = Field(
        default="none",
        description="what the backward pass computes again to save memory: nothing "
        "wide, the MLP's products (dots), or whole layers (full)",
    )


def _targets(value: Any) -> Any:
    names = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise PydanticCustomError("targets", "must be text or a list (each text)")
    return value


def _numbers(value: Any) -> Any:
    return _tuple([value] if isinstance(value, int) else value)


# Checked as a whole: of a union pydantic reports every member's complaint.
Targets = Annotated[Any, BeforeValidator(_targets)]


class AdapterSection(ComponentSection):
    """What trains. The other keys are the method's, such as `r` and `lora_alpha`."""

    selector: ClassVar[str] = "method"
    method: Text = Field(
        default="lora",
        description="how the base is adapted: lora, lora_fa, dora, ia3, bottleneck, "
        "bitfit for its biases alone, or full for no adapter: the base itself trains, "
        "or the part of it that the keys below name",
    )
    target_modules: Targets = Field(
        default="all-linear",
        description="names, a regular expression over whole names, or all-linear; left "
        "out: what the method is made for (full: everything)",
    )
    exclude_modules: Targets | None = Field(
        default=None,
        description="names, or a regular expression over whole names, of modules that "
        "are left out although target_modules means them",
    )
    layers_to_transform: Annotated[
        tuple[Whole, ...] | None, BeforeValidator(_numbers)
    ] = Field(
        default=None,
        description="numbers of the layers that are adapted, or with method full "
        "train; null: all",
    )
    modules_to_save: Annotated[tuple[Text, ...], BeforeValidator(_tuple)] = Field(
        default=(),
        description="names of modules that train as a whole, such as lm_head, "
        "embed_tokens or norm",
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none",
        description="which of the base's biases train: none, all, or those of the "
        "adapted modules",
    )
    init_from: Text | None = Field(
        default=None, description="a PEFT adapter directory to continue from"
    )


class SourceSection(_Section):
    """One file of examples."""

    path: Text = Field(
        description="a json, jsonl, csv, parquet or txt file, or a folder of them"
    )
    format: Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text"] = (
        Field(default="alpaca", description="how a record is laid out")
    )
    weight: Positive = Field(default=1.0, description="share in a mixture of sources")
    fields: dict[str, Text | None] | None = Field(
        default=None,
        description="the format's column names -> the file's own, or null for one that "
        "is not read",
    )
    max_samples: Count | None = Field(
        default=None, description="use the first ones only"
    )


def _several(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value:
            raise PydanticCustomError("no_source", "must name at least one source")
        return tuple(value)
    return (value,) if isinstance(value, Mapping | SourceSection) else value


Sources = Annotated[tuple[SourceSection, ...], BeforeValidator(_several)]


class DataSection(_Section):
    """The examples, and how they become batches."""

    train: Sources = Field(description="one source or a list of them")
    eval: Sources | None = Field(
        default=None, description="likewise; null: no evaluation, or see eval_split"
    )
    eval_split: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of every source to hold out and evaluate on, in place of "
        "eval; the same records whatever the seed",
    )
    max_length: Count = Field(
        default=1024, description="tokens; longer examples are cut"
    )
    packing: bool = Field(default=False, description="several examples in one sequence")
    shuffle: bool = Field(
        default=True, description="another order in each epoch, by the seed"
    )
    train_on: Literal["assistant", "all"] = Field(
        default="assistant", description="the turns whose tokens count in the loss"
    )
    length_buckets: Count = Field(
        default=3, description="how many padded lengths a run may compile"
    )
    eval_batch_size: Count | None = Field(
        default=None, description="null: as many as a step of training holds at a time"
    )

    @property
    def evaluates(self) -> bool:
        """Whether there are data to evaluate on."""
        return self.eval is not None or self.eval_split is not None

    @model_validator(mode="after")
    def _one_evaluation(self) -> "DataSection":
        if self.eval is not None and self.eval_split is not None:
            raise ValueError(
                f"eval_split: found {self.eval_split:g} beside data.eval; give only one"
            )
        return self


def _regular(value: Any) -> Any:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise PydanticCustomError(
            "pattern", "must be a regular expression ({error})", {"error": str(error)}
        ) from None
    return value


class GroupSection(_Section):
    """Parameters with settings of their own."""

    pattern: Annotated[Text, BeforeValidator(_regular)] = Field(
        description="a regular expression for the whole dotted name of a parameter"
    )
    learning_rate_factor: float = Field(
        default=1.0, ge=0, description="their rate over that of the others"
    )
    weight_decay: float | None = Field(
        default=None, ge=0, description="null: that of the others"
    )


AUTO = "auto"


def _or_auto(value: Any, number: ValidatorFunctionWrapHandler) -> Any:
    return AUTO if value == AUTO else number(value)


# Not a union: of that pydantic reports every member's complaint.
Rate = Annotated[
    float,
    Field(ge=0),
    WrapValidator(_or_auto),
    PlainSerializer(lambda value: value, return_type=Any),
]


class OptimizerSection(ComponentSection):
    """The optimizer. The other keys are its own, such as `b1` and `weight_decay`."""

    name: Text = Field(default="adamw", description="adamw, ...")
    learning_rate: Rate = Field(
        default=2e-4,
        description="the schedule's highest; auto: a range test chooses it first, as "
        "the command lr_find does",
    )
    max_grad_norm: Positive | None = Field(
        default=1.0, description="clip the global gradient norm to this; null: do not"
    )
    groups: Annotated[tuple[GroupSection, ...], BeforeValidator(_tuple)] = Field(
        default=(),
        description="a list of {pattern, learning_rate_factor, weight_decay}; the "
        "first one that matches a parameter counts",
    )
    lora_plus_ratio: Positive | None = Field(
        default=None, description="LoRA+: the rate of every b over that of every a"
    )
    decay_all: bool = Field(
        default=False, description="weight decay for biases and norms too"
    )

    @property
    def is_auto(self) -> bool:
        """Whether the learning rate is still to be chosen."""
        return self.learning_rate == AUTO

    def at_rate(self, learning_rate: float) -> "OptimizerSection":
        """The same with this learning rate."""
        return self.model_copy(update={"learning_rate": learning_rate})


class ScheduleSection(ComponentSection):
    """The course of the learning rate. The other keys are the schedule's own."""

    name: Text = Field(default="cosine", description="constant, linear, cosine, ...")
    warmup_ratio: float | None = Field(
        default=None, ge=0, le=1, description="share of the steps that warm up"
    )
    warmup_steps: Whole | None = Field(default=None, description="steps that warm up")

    @model_validator(mode="after")
    def _one_warmup(self) -> "ScheduleSection":
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError(
                f"warmup_ratio: found {self.warmup_ratio} beside warmup_steps "
                f"{self.warmup_steps}; give only one, or set the other to null"
            )
        return self


class TrainingSection(_Section):
    """How long to train, in which batches, and what to do on the way."""

    max_steps: Count | None = Field(
        default=None, description="optimizer steps, or num_epochs"
    )
    num_epochs: Positive | None = Field(
        default=None,
        description="passes over the data, or max_steps; 1.0 if neither is given",
    )
    batch_size: Count = Field(
        default=16, description="sequences a step, over all devices and accumulation"
    )
    gradient_accumulation_steps: Count = Field(
        default=1, description="parts that a batch is cut into, one after another"
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none",
        description="what multiplies optimizer.learning_rate: batch_size over "
        "lr_reference_batch_size (linear), or the square root of that (sqrt)",
    )
    lr_reference_batch_size: Count | None = Field(
        default=None, description="the batch_size that optimizer.learning_rate is for"
    )
    logging_steps: Count = Field(
        default=10, description="steps between two lines of the log"
    )
    eval_steps: Count | None = Field(
        default=50, description="steps between two evaluations; null: at the end only"
    )
    save_steps: Count = Field(default=50, description="steps between two checkpoints")
    save_total_limit: Count | None = Field(
        default=3, description="checkpoints to keep; null: all"
    )
    early_stopping_patience: Count | None = Field(
        default=None, description="evaluations without improvement before the run ends"
    )
    early_stopping_threshold: float = Field(
        default=0.0,
        ge=0,
        description="by how much more than this a loss must be below the best one to "
        "be an improvement, in nats per token",
    )
    load_best_model_at_end: bool | None = Field(
        default=None,
        description="keep the checkpoint of the lowest evaluation loss, and write its "
        "adapter at the end; null: with early_stopping_patience",
    )
    max_nonfinite_steps: Whole = Field(
        default=10, description="steps skipped in a row before the run aborts"
    )
    samples: Whole = Field(
        default=1,
        description="evaluation examples to answer before and after training",
    )
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio", "all"], ...],
        BeforeValidator(_sinks),
    ] = Field(
        default=(),
        description="where metrics go too: tensorboard, wandb, trackio, or a list of "
        "them; all: those that are installed; none",
    )
    fused_backward: bool | None = Field(
        default=None,
        description="update each layer inside the backward pass, so that never all "
        "gradients exist; null: for lomo and adalomo with method full",
    )
    watchdog_seconds: Count | None = Field(
        default=None, description="abort a run that makes no step for so long"
    )

    @property
    def keeps_best(self) -> bool:
        """Whether the parameters with the lowest evaluation loss are the result."""
        if self.load_best_model_at_end is None:
            return self.early_stopping_patience is not None
        return self.load_best_model_at_end

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, keys: Any) -> Any:
        lengths = ("max_steps", "num_epochs")
        if isinstance(keys, Mapping) and all(keys.get(key) is None for key in lengths):
            return {**keys, "num_epochs": 1.0}
        return keys

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSection":
        problems = []
        if self.max_steps is not None and self.num_epochs is not None:
            problems.append(
                f"max_steps: found {self.max_steps} beside num_epochs "
                f"{self.num_epochs}; give only one, or set the other to null"
            )
        size, parts = self.batch_size, self.gradient_accumulation_steps
        if size % parts:
            below, above = size // parts * parts, -(-size // parts) * parts
            problems.append(
                f"batch_size: found {size}; is not divisible by "
                f"gradient_accumulation_steps {parts}; use "
                + (f"{below} or {above}" if below else f"{above}")
            )
        problems += self._scaling_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _scaling_problems(self) -> list[str]:
        rule, reference = self.lr_scaling, self.lr_reference_batch_size
        if rule != "none" and reference is None:
            return [
                f"lr_scaling: found {rule!r} without lr_reference_batch_size; give "
                "the batch size that optimizer.learning_rate was found at"
            ]
        if rule == "none" and reference is not None:
            return [
                f"lr_reference_batch_size: found {reference} with lr_scaling none, "
                "where it says nothing; set lr_scaling to linear or sqrt, or remove it"
            ]
        return []


class MeshSection(_Section):
    """How many devices share each kind of work; -1 takes what is left of them."""

    data: int = Field(default=-1, ge=-1, description="replicas that split the batch")
    fsdp: int = Field(
        default=1, ge=-1, description="devices that split weights and batch"
    )
    tensor: int = Field(default=1, ge=-1, description="devices that split each layer")

    @model_validator(mode="after")
    def _consistent(self) -> "MeshSection":
        axes = self.model_dump()
        problems = [
            f"{axis}: found 0; must be a number of devices, or -1 for what is left"
            for axis, size in axes.items()
            if size == 0
        ]
        if list(axes.values()).count(-1) > 1:
            first, *_, last = [axis for axis, size in axes.items() if size == -1]
            problems.append(
                f"{last}: found -1, as for {first}; only one axis can take what is "
                f"left, so set mesh.{first} to a number"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ClusterSection(_Section):
    """How several processes wait for each other; where they are, the launcher says."""

    initialization_timeout: Count = Field(
        default=300, description="seconds for all processes to come together"
    )
    heartbeat_timeout: Count = Field(
        default=40,
        description="seconds without an answer after which a process counts as dead, "
        "which ends the others",
    )


class RunConfig(_Section):
    """Everything that a run depends on."""

    output_dir: Text = Field(description="the run directory")
    seed: int = Field(default=42, ge=0, lt=2**32, description="of all that is random")
    deterministic: bool = Field(
        default=False,
        description="repeat bit for bit on GPUs, too, which makes them slower",
    )
    model: ModelSection
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    data: DataSection
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)

    def at_rate(self, learning_rate: float) -> "RunConfig":
        """The same with this learning rate."""
        optimizer = self.optimizer.at_rate(learning_rate)
        return self.model_copy(update={"optimizer": optimizer})

    @model_validator(mode="before")
    @classmethod
    def _sections(cls, keys: Any) -> Any:
        """An empty section is one of defaults; steps of an evaluation need its data."""
        if not isinstance(keys, Mapping):
            return keys
        empty = {name: {} for name in SECTIONS if keys.get(name) is None}
        keys = {**keys, **empty}
        data, training = keys["data"], keys["training"]
        readable = isinstance(data, Mapping) and isinstance(training, Mapping)
        if readable and data.get("eval") is None:
            keys["training"] = {"eval_steps": None, **training}
        return keys


SECTIONS: dict[str, type[_Section]] = {
    "model": ModelSection,
    "adapter": AdapterSection,
    "data": DataSection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
    "training": TrainingSection,
    "mesh": MeshSection,
    "cluster": ClusterSection,
}
