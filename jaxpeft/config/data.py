"""The section that says which examples there are, and how they become batches."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from jaxpeft.config import keys
from jaxpeft.config.base import Count, Place, Positive, Section, Text


class SourceSection(Section):
    """One source of examples."""

    path: Place = Field(
        description="a json, jsonl, csv, parquet or txt file, also .gz and .zst, a "
        "folder of them, a pattern such as data/*.jsonl, an address such as s3://..., "
        "the hub id of a data set, or a folder with LLaMA-Factory's dataset_info.json",
        json_schema_extra=keys.CONTENT,
    )
    name: Text | None = Field(
        default=None,
        description="which configuration of a data set, null: the only one; or its "
        "name in dataset_info.json",
        json_schema_extra=keys.CONTENT,
    )
    split: Text | None = Field(
        default=None,
        description="which rows of a data set, such as test or train[:5%]; null: train",
        json_schema_extra=keys.CONTENT,
    )
    revision: Text | None = Field(
        default=None,
        description="commit, tag or branch of a data set of the hub; null: the newest",
        json_schema_extra=keys.CONTENT,
    )
    data_dir: Text | None = Field(
        default=None,
        description="the folder of a data set to read alone; null: all of it",
        json_schema_extra=keys.CONTENT,
    )
    format: Literal["alpaca", "sharegpt", "messages", "prompt_completion", "text"] = (
        Field(
            default="alpaca",
            description="how a record is laid out, unless dataset_info.json says it",
            json_schema_extra=keys.CONTENT,
        )
    )
    weight: Positive = Field(
        default=1.0,
        description="share in a mixture of sources",
        json_schema_extra=keys.CONTENT,
    )
    fields: dict[str, Text | None] | None = Field(
        default=None,
        description="the format's column names -> the file's own, or null for one that "
        "is not read",
        json_schema_extra=keys.CONTENT,
    )
    max_samples: Count | None = Field(
        default=None,
        description="use the first ones only",
        json_schema_extra=keys.CONTENT,
    )


def _several(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if not value:
            raise PydanticCustomError("no_source", "must name at least one source")
        return tuple(value)
    return (value,) if isinstance(value, Mapping | SourceSection) else value


Sources = Annotated[tuple[SourceSection, ...], BeforeValidator(_several)]


class DataSection(Section):
    """The examples, and how they become batches."""

    train: Sources = Field(
        description="one source or a list of them", json_schema_extra=keys.CONTENT
    )
    eval: Sources | None = Field(
        default=None,
        description="likewise; null: no evaluation, or see eval_split",
        json_schema_extra=keys.CONTENT,
    )
    eval_split: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of every source to hold out and evaluate on, in place of "
        "eval; the same records whatever the seed",
        json_schema_extra=keys.CONTENT,
    )
    max_length: Count = Field(
        default=1024,
        description="tokens; longer examples are cut",
        json_schema_extra=keys.CONTENT,
    )
    packing: bool = Field(
        default=False,
        description="several examples in one sequence",
        json_schema_extra=keys.CONTENT,
    )
    shuffle: bool = Field(
        default=True,
        description="another order in each epoch, by the seed",
        json_schema_extra=keys.CONTENT,
    )
    train_on: Literal["assistant", "all"] = Field(
        default="assistant",
        description="the turns whose tokens count in the loss",
        json_schema_extra=keys.CONTENT,
    )
    length_buckets: Count = Field(
        default=3,
        description="how many padded lengths a run may compile",
        json_schema_extra=keys.CONTENT,
    )
    on_error: Literal["stop", "skip"] = Field(
        default="stop",
        description="what to do about rows that cannot be used: end with a list of "
        "them, or leave them out and say how many",
        json_schema_extra=keys.CONTENT,
    )
    num_workers: Count | None = Field(
        default=None,
        description="processes that read and tokenize; null: one a core, at most 8; "
        "small files need none",
        json_schema_extra=keys.NEVER,
    )
    cache_dir: Text | None = Field(
        default=None,
        description="the folder where tokenized examples are kept; null: in the user's "
        "cache folder, see JAXPEFT_CACHE_DIR",
        json_schema_extra=keys.NEVER,
    )
    streaming: bool = Field(
        default=False,
        description="draw records while they are read, for data too large to store; "
        "needs training.max_steps",
        json_schema_extra=keys.CONTENT,
    )
    shuffle_buffer: Count = Field(
        default=10_000,
        description="with streaming, the records that wait in memory to be drawn at "
        "random",
        json_schema_extra=keys.CONTENT,
    )
    eval_batch_size: Count | None = Field(
        default=None,
        description="null: as many as a step of training holds at a time",
        json_schema_extra=keys.CONTENT,
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

    @model_validator(mode="after")
    def _what_is_streamed(self) -> "DataSection":
        if self.streaming and self.packing:
            raise ValueError(
                "packing: found true beside data.streaming, which gives every record a "
                "row of its own; set one of the two to false"
            )
        if self.streaming and self.eval_split is not None:
            raise ValueError(
                f"eval_split: found {self.eval_split:g} beside data.streaming, which "
                "never has all records to divide; give data.eval in its place"
            )
        return self
