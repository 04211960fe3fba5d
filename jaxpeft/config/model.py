"""The section `model` of a configuration."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from jaxpeft.config import keys
from jaxpeft.config.base import Place, Section, Text, as_tuple


class ModelSection(Section):
    """The frozen base model."""

    path: Place = Field(
        description="a local directory in Hugging Face format, or a hub id; "
        "jaxpeft:tiny-llama comes with the package",
        json_schema_extra=keys.CONTENT,
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        default="bfloat16",
        description="of the frozen base and the activations; auto: bfloat16 where the "
        "devices have it, float16 (whose loss is scaled) on older GPUs such as T4 and "
        "V100, float32 on CPUs",
        json_schema_extra=keys.ALWAYS,
    )
    quantization: Literal["none", "int8", "fp8", "nf4", "nf4_single"] = Field(
        default="none",
        description="how the frozen base is stored; fp8 is e4m3 with a scale for each "
        "output, multiplied in model.dtype; nf4_single is nf4 without double "
        "quantization of its scales; a checkpoint in bitsandbytes' nf4 stays as it is",
        json_schema_extra=keys.ALWAYS,
    )
    quantization_skip: Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description="names of layers' modules that are stored whole, such as down_proj",
        json_schema_extra=keys.ALWAYS,
    )
    remat: Literal["none", "full", "dots"] = Field(
        default="none",
        description="what the backward pass computes again to save memory: nothing "
        "wide, the MLP's products (dots), or whole layers (full)",
        json_schema_extra=keys.NEVER,
    )
    offload: Literal["none", "activations", "weights", "both"] = Field(
        default="none",
        description="what lies in the host's memory while no device needs it: nothing, "
        "what layers keep for the backward pass (activations), the layers' frozen "
        "weights (weights), or both",
        json_schema_extra=keys.NEVER,
    )
    tile: int | None = Field(
        default=None,
        ge=16,
        description="how many tokens of a sequence go through an MLP at a time, for "
        "sequences of which even one layer's would not fit; null: all",
        json_schema_extra=keys.NEVER,
    )
