"""What all sections of a configuration are made of: their base, and kinds of values."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from jaxpeft.config import paths
from jaxpeft.errors import InputError


def _at_home(text: str) -> str:
    try:
        return paths.at_home(text)
    except InputError as error:
        _, _, why = str(error).partition("; ")
        raise PydanticCustomError("home", "{why}", {"why": why}) from None


Text = Annotated[str, Field(min_length=1)]
# Of a file or a folder; `~` in front is the home folder.
Place = Annotated[Text, AfterValidator(_at_home)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Whole = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration, checked strictly and unchangeable once made."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False
    )


class ComponentSection(Section):
    """A section that names a component; `options` are that component's own keys."""

    model_config = ConfigDict(extra="allow")
    selector: ClassVar[str] = "name"

    @property
    def choice(self) -> str:
        """The name of the component that the section chooses."""
        return getattr(self, self.selector)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that this section leaves to the component."""
        return dict(self.model_extra or {})


def as_tuple(value: Any) -> Any:
    """The value, and of a list the tuple of its elements, which does not change."""
    return tuple(value) if isinstance(value, list) else value
