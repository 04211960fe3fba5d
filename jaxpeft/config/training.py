"""The sections that say how many steps are taken, and over which devices."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from jaxpeft.config import keys
from jaxpeft.config.base import Count, Positive, Section, Text, Whole, as_tuple

EVAL = "eval_"  # what the names of an evaluation's figures begin with
LOSS = EVAL + "loss"  # the figure that evaluations are compared by, unless told


def _sinks(value: Any) -> Any:
    """The names in `report_to`, as transformers reads it: one or several, or "none"."""
    names = as_tuple([value] if isinstance(value, str) else value)
    return () if names is None or names == ("none",) else names


class TrainingSection(Section):
    """How long to train, in which batches, and what to do on the way."""

    max_steps: Count | None = Field(
        default=None,
        description="optimizer steps, or num_epochs",
        json_schema_extra=keys.ALWAYS,
    )
    num_epochs: Positive | None = Field(
        default=None,
        description="passes over the data, or max_steps; 1.0 if neither is given",
        json_schema_extra=keys.ALWAYS,
    )
    batch_size: Count = Field(
        default=16,
        description="sequences a step, over all devices and accumulation",
        json_schema_extra=keys.ALWAYS,
    )
    gradient_accumulation_steps: Count = Field(
        default=1,
        description="parts that a batch is cut into, one after another",
        json_schema_extra=keys.ALWAYS,
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none",
        description="what multiplies optimizer.learning_rate: batch_size over "
        "lr_reference_batch_size (linear), or the square root of that (sqrt)",
        json_schema_extra=keys.IF_SET,
    )
    lr_reference_batch_size: Count | None = Field(
        default=None,
        description="the batch_size that optimizer.learning_rate is for",
        json_schema_extra=keys.IF_SET,
    )
    logging_steps: Count = Field(
        default=10,
        description="steps between two lines of the log",
        json_schema_extra=keys.NEVER,
    )
    eval_steps: Count | None = Field(
        default=50,
        description="steps between two evaluations; null: at the end only",
        json_schema_extra=keys.IF_STEERING,
    )
    eval_on_start: bool = Field(
        default=True,
        description="evaluate before the first step too",
        json_schema_extra=keys.NEVER,
    )
    eval_max_examples: Count | None = Field(
        default=None,
        description="evaluate on so many examples, the same each time, spread evenly "
        "over the evaluation data; null: all",
        json_schema_extra=keys.CONTENT,
    )
    save_steps: Count = Field(
        default=50,
        description="steps between two checkpoints",
        json_schema_extra=keys.NEVER,
    )
    save_total_limit: Count | None = Field(
        default=3,
        description="checkpoints to keep; null: all",
        json_schema_extra=keys.NEVER,
    )
    early_stopping_patience: Count | None = Field(
        default=None,
        description="evaluations without improvement before the run ends",
        json_schema_extra=keys.ALWAYS,
    )
    early_stopping_threshold: float = Field(
        default=0.0,
        ge=0,
        description="by how much more than this a loss must be below the best one to "
        "be an improvement, in nats per token; or another figure be better, see "
        "metric_for_best_model",
        json_schema_extra=keys.ALWAYS,
    )
    load_best_model_at_end: bool | None = Field(
        default=None,
        description="keep the checkpoint of the lowest evaluation loss (or the best "
        "metric_for_best_model), and write its adapter at the end; null: with "
        "early_stopping_patience",
        json_schema_extra=keys.ALWAYS,
    )
    metric_for_best_model: Text = Field(
        default="loss",
        description="the figure of an evaluation that early stopping, the best "
        "checkpoint, schedules that follow evaluations, and the order of a sweep go "
        "by: loss, accuracy, or the name of a metric in evaluation.metrics",
        json_schema_extra=keys.IF_SET,
    )
    greater_is_better: bool | None = Field(
        default=None,
        description="whether a higher metric_for_best_model is the better one; null: "
        "as it is of that figure (no for losses and perplexity)",
        json_schema_extra=keys.IF_SET,
    )
    max_nonfinite_steps: Whole = Field(
        default=10,
        description="steps skipped in a row before the run aborts",
        json_schema_extra=keys.ALWAYS,
    )
    samples: Whole = Field(
        default=1,
        description="evaluation examples to answer before and after training",
        json_schema_extra=keys.NEVER,
    )
    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio", "all"], ...],
        BeforeValidator(_sinks),
    ] = Field(
        default=(),
        description="where metrics go too: tensorboard, wandb, trackio, or a list of "
        "them; all: those that are installed; none",
        json_schema_extra=keys.NEVER,
    )
    fused_backward: bool | None = Field(
        default=None,
        description="update each layer inside the backward pass, so that never all "
        "gradients exist; null: for lomo and adalomo with method full",
        json_schema_extra=keys.ALWAYS,
    )
    watchdog_seconds: Count | None = Field(
        default=None,
        description="abort a run that makes no step for so long",
        json_schema_extra=keys.NEVER,
    )
    termination_grace_seconds: Count = Field(
        default=30,
        description="a run that gets SIGTERM has saved and ended within so many "
        "seconds, or gives up the step it is at; as long as what stops it waits",
        json_schema_extra=keys.NEVER,
    )

    @property
    def keeps_best(self) -> bool:
        """Whether the parameters with the lowest evaluation loss are the result."""
        if self.load_best_model_at_end is None:
            return self.early_stopping_patience is not None
        return self.load_best_model_at_end

    @property
    def figure(self) -> str:
        """The figure that evaluations are compared by, as they name it: `eval_...`."""
        return EVAL + self.metric_for_best_model.removeprefix(EVAL)

    @property
    def prefers_greater(self) -> bool:
        """Whether the higher figure is the better one."""
        if self.greater_is_better is None:
            return not self.figure.endswith(("loss", "perplexity"))
        return self.greater_is_better

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


class MeshSection(Section):
    """How many devices share each kind of work; -1 takes what is left of them."""

    data: int = Field(
        default=-1,
        ge=-1,
        description="replicas that split the batch",
        json_schema_extra=keys.NEVER,
    )
    fsdp: int = Field(
        default=1,
        ge=-1,
        description="devices that split weights and batch",
        json_schema_extra=keys.NEVER,
    )
    tensor: int = Field(
        default=1,
        ge=-1,
        description="devices that split each layer",
        json_schema_extra=keys.NEVER,
    )
    context: int = Field(
        default=1,
        ge=-1,
        description="devices that split each sequence, for long ones, and weights as "
        "fsdp does; it must divide data.max_length",
        json_schema_extra=keys.NEVER,
    )

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


class ClusterSection(Section):
    """How several processes wait for each other; where they are, the launcher says."""

    initialization_timeout: Count = Field(
        default=300,
        description="seconds for all processes to come together",
        json_schema_extra=keys.NEVER,
    )
    heartbeat_timeout: Count = Field(
        default=40,
        description="seconds without an answer after which a process counts as dead, "
        "which ends the others",
        json_schema_extra=keys.NEVER,
    )
