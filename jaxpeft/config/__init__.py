"""The configuration of a run: its sections, their defaults, and how YAML becomes them.

The sections `adapter`, `optimizer` and `schedule` choose a component by name; their
other keys are that component's keyword arguments, so its signature is their schema.
This package knows no component: who has the registries passes them in as `Table`s.
"""

from jaxpeft.config.base import ComponentSection
from jaxpeft.config.components import Row, Table, check_call
from jaxpeft.config.data import DataSection, SourceSection
from jaxpeft.config.reading import build, load, parse, parse_section, to_yaml
from jaxpeft.config.sections import (
    AdapterSection,
    ModelSection,
    OptimizerSection,
    RunConfig,
    ScheduleSection,
)
from jaxpeft.config.settings import identity, program
from jaxpeft.config.training import MeshSection, TrainingSection

__all__ = [
    "AdapterSection",
    "ComponentSection",
    "DataSection",
    "MeshSection",
    "ModelSection",
    "OptimizerSection",
    "Row",
    "RunConfig",
    "ScheduleSection",
    "SourceSection",
    "Table",
    "TrainingSection",
    "build",
    "check_call",
    "identity",
    "load",
    "parse",
    "parse_section",
    "program",
    "to_yaml",
]
