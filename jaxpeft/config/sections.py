"""The sections of a configuration: every key, its type, its default, its meaning."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from jaxpeft.config import keys
from jaxpeft.config.base import (
    ComponentSection,
    Place,
    Positive,
    Section,
    Text,
    Whole,
    as_tuple,
)
from jaxpeft.config.data import DataSection
from jaxpeft.config.evaluation import EvaluationSection
from jaxpeft.config.model import ModelSection
from jaxpeft.config.training import ClusterSection, MeshSection, TrainingSection


def _targets(value: Any) -> Any:
    names = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise PydanticCustomError("targets", "must be text or a list (each text)")
    return value


def _numbers(value: Any) -> Any:
    return as_tuple([value] if isinstance(value, int) else value)


def _token_indices(value: Any) -> Any:
    lists = list(value.values()) if isinstance(value, Mapping) else [value]
    if isinstance(value, Mapping) and not all(isinstance(name, str) for name in value):
        lists = [None]
    for numbers in lists:
        if not isinstance(numbers, list | tuple) or not all(
            type(number) is int and number >= 0 for number in numbers
        ):
            raise PydanticCustomError(
                "tokens",
                "must be a list (each a whole number from 0), or a mapping of such "
                "lists by module",
            )
    if isinstance(value, Mapping):
        return {name: tuple(numbers) for name, numbers in value.items()}
    return tuple(value)


# Checked as a whole: of a union pydantic reports every member's complaint.
TokenIndices = Annotated[Any, BeforeValidator(_token_indices)]
Targets = Annotated[Any, BeforeValidator(_targets)]


class AdapterSection(ComponentSection):
    """What trains. The other keys are the method's, such as `r` and `lora_alpha`."""

    selector: ClassVar[str] = "method"
    method: Text = Field(
        default="lora",
        description="how the base is adapted: lora, lora_fa, dora, oft, vera, ia3, "
        "bottleneck, prompt_tuning, prefix_tuning, bitfit for its biases alone, or "
        "full for no adapter: the base itself trains, or the part of it that the keys "
        "below name",
        json_schema_extra=keys.ALWAYS,
    )
    target_modules: Targets = Field(
        default="all-linear",
        description="names, a regular expression over whole names, or all-linear; left "
        "out: what the method is made for (full: everything)",
        json_schema_extra=keys.ALWAYS,
    )
    exclude_modules: Targets | None = Field(
        default=None,
        description="names, or a regular expression over whole names, of modules that "
        "are left out although target_modules means them",
        json_schema_extra=keys.ALWAYS,
    )
    layers_to_transform: Annotated[
        tuple[Whole, ...] | None, BeforeValidator(_numbers)
    ] = Field(
        default=None,
        description="numbers of the layers that are adapted, or with method full "
        "train; null: all",
        json_schema_extra=keys.ALWAYS,
    )
    modules_to_save: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="names of modules that train as a whole, such as lm_head, "
        "embed_tokens or norm",
        json_schema_extra=keys.ALWAYS,
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none",
        description="which of the base's biases train: none, all, or those of the "
        "adapted modules",
        json_schema_extra=keys.ALWAYS,
    )
    trainable_token_indices: TokenIndices | None = Field(
        default=None,
        description="numbers of tokens whose vectors in the embedding train, a list; "
        "or {embed_tokens: list, lm_head: list}",
        json_schema_extra=keys.IF_SET,
    )
    ensure_weight_tying: bool = Field(
        default=False,
        description="an embedding in modules_to_save that the head shares stays one "
        "with it; false: what is named trains apart from the other",
        json_schema_extra=keys.IF_SET,
    )
    init_from: Place | None = Field(
        default=None,
        description="a PEFT adapter directory to continue from",
        json_schema_extra=keys.ALWAYS,
    )


def _regular(value: Any) -> Any:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise PydanticCustomError(
            "pattern", "must be a regular expression ({error})", {"error": str(error)}
        ) from None
    return value


LARGEST = 3.4e38  # about as much as float32 holds


class GroupSection(Section):
    """Parameters with settings of their own."""

    pattern: Annotated[Text, BeforeValidator(_regular)] = Field(
        description="a regular expression for the whole dotted name of a parameter",
        json_schema_extra=keys.ALWAYS,
    )
    learning_rate_factor: float = Field(
        default=1.0,
        ge=0,
        le=LARGEST,
        description="their rate over that of the others",
        json_schema_extra=keys.ALWAYS,
    )
    weight_decay: float | None = Field(
        default=None,
        ge=0,
        le=LARGEST,
        description="null: that of the others",
        json_schema_extra=keys.ALWAYS,
    )


AUTO = "auto"


def _or_auto(value: Any, number: ValidatorFunctionWrapHandler) -> Any:
    return AUTO if value == AUTO else number(value)


# Not a union: of that pydantic reports every member's complaint.
Rate = Annotated[
    float,
    Field(ge=0, le=LARGEST),
    WrapValidator(_or_auto),
    PlainSerializer(lambda value: value, return_type=Any),
]


class OptimizerSection(ComponentSection):
    """The optimizer. The other keys are its own, such as `b1` and `weight_decay`."""

    name: Text = Field(
        default="adamw", description="adamw, ...", json_schema_extra=keys.ALWAYS
    )
    learning_rate: Rate = Field(
        default=2e-4,
        description="the schedule's highest; auto: a range test chooses it first, as "
        "the command lr_find does",
        json_schema_extra=keys.RATE,
    )
    max_grad_norm: Positive | None = Field(
        default=1.0,
        description="clip the global gradient norm to this; null: do not",
        json_schema_extra=keys.ALWAYS,
    )
    groups: Annotated[tuple[GroupSection, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="a list of {pattern, learning_rate_factor, weight_decay}; the "
        "first one that matches a parameter counts",
        json_schema_extra=keys.ALWAYS,
    )
    lora_plus_ratio: Positive | None = Field(
        default=None,
        description="LoRA+: the rate of every b over that of every a",
        json_schema_extra=keys.ALWAYS,
    )
    decay_all: bool = Field(
        default=False,
        description="weight decay for biases and norms too",
        json_schema_extra=keys.ALWAYS,
    )
    quantize_state: bool = Field(
        default=False,
        description="keep the state in 8 bits between the steps, of any optimizer",
        json_schema_extra=keys.IF_SET,
    )
    offload: bool = Field(
        default=False,
        description="keep the state in the host's memory between the steps; the names "
        "paged_... set it",
        json_schema_extra=keys.NEVER,
    )

    @property
    def is_auto(self) -> bool:
        """Whether the learning rate is still to be chosen."""
        return self.learning_rate == AUTO

    def at_rate(self, learning_rate: float) -> "OptimizerSection":
        """The same section with another learning rate."""
        return self.model_copy(update={"learning_rate": learning_rate})


class ScheduleSection(ComponentSection):
    """The course of the learning rate. The other keys are the schedule's own."""

    name: Text = Field(
        default="cosine",
        description="constant, linear, cosine, ...",
        json_schema_extra=keys.COURSE,
    )
    warmup_ratio: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of the steps that warm up",
        json_schema_extra=keys.COURSE,
    )
    warmup_steps: Whole | None = Field(
        default=None, description="steps that warm up", json_schema_extra=keys.COURSE
    )

    @model_validator(mode="after")
    def _one_warmup(self) -> "ScheduleSection":
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError(
                f"warmup_ratio: found {self.warmup_ratio} beside warmup_steps "
                f"{self.warmup_steps}; give only one, or set the other to null"
            )
        return self


class ObjectiveSection(ComponentSection):
    """What a step minimises. The other keys are the objective's own."""

    name: Text = Field(
        default="sft",
        description="sft, dpo, orpo, simpo, cpo, kto, reward, classification: "
        "docs/objectives.md",
        json_schema_extra=keys.IF_SET,
    )


class RunConfig(Section):
    """Everything that a run depends on."""

    output_dir: Place = Field(
        description="the run directory", json_schema_extra=keys.PLACE
    )
    seed: int = Field(
        default=42,
        ge=0,
        lt=2**32,
        description="of all that is random",
        json_schema_extra=keys.NUMBER,
    )
    deterministic: bool = Field(
        default=False,
        description="repeat bit for bit on GPUs, too, which makes them slower",
        json_schema_extra=keys.NEVER,
    )
    model: ModelSection
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    data: DataSection
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    training: TrainingSection = Field(default_factory=TrainingSection)
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    mesh: MeshSection = Field(default_factory=MeshSection)
    cluster: ClusterSection = Field(default_factory=ClusterSection)

    def at_rate(self, learning_rate: float) -> "RunConfig":
        """The same configuration with another learning rate."""
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
        evaluates = readable and (data.get("eval") or data.get("eval_split"))
        if readable and not evaluates:
            keys["training"] = {"eval_steps": None, **training}
        return keys


SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "adapter": AdapterSection,
    "objective": ObjectiveSection,
    "data": DataSection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
    "training": TrainingSection,
    "evaluation": EvaluationSection,
    "mesh": MeshSection,
    "cluster": ClusterSection,
}


def component_class(section: str) -> type[ComponentSection]:
    """The class of a section that chooses a component.

    Args:
        section: its name.
    """
    cls = SECTIONS[section]
    assert issubclass(cls, ComponentSection), section
    return cls


def chosen(section: str, keys: Any) -> str:
    """The name of the component that the section chooses; "" if it is not text.

    Args:
        section: its name.
        keys: what it holds.
    """
    cls = component_class(section)
    default = cls.model_fields[cls.selector].default
    name = keys.get(cls.selector, default) if isinstance(keys, Mapping) else default
    return name if isinstance(name, str) else ""
