"""The data of objectives that weigh whole answers: what they need besides a kind."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxpeft import data
from jaxpeft.data.kinds import Kind
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from jaxpeft.config import DataSection


def loads(
    kind: Kind, checked: Callable[[data.Examples], None] = lambda examples: None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`load_train` and `load_eval` of an objective that weighs answers.

    Args:
        kind: what records become.
        checked: of all examples to train on; it may raise InputError.
    """

    def load_train(section: "DataSection", *args: Any, **keys: Any) -> Any:
        _answers_alone(section)
        batches = data.load_train(section, *args, **keys, kind=kind)
        if isinstance(batches, data.Batches):  # of a stream the rest is not yet known
            checked(batches.examples)
        return batches

    def load_eval(
        section: "DataSection", *args: Any, **keys: Any
    ) -> data.EvalBatches | None:
        _answers_alone(section)
        return data.load_eval(section, *args, **keys, kind=kind)

    return load_train, load_eval


def _answers_alone(section: "DataSection") -> None:
    if section.train_on == "all":
        raise InputError(
            "data.train_on: found all; this objective weighs the answers, and a prompt "
            "is the same for both: use assistant"
        )


def both_labels(examples: data.Examples) -> None:
    """Checks that some answers are wanted and some are not.

    Args:
        examples: with the column `label`.

    Raises:
        InputError: all labels are the same.
    """
    wanted = int(examples.columns["label"].sum())
    if not 0 < wanted < len(examples):
        raise InputError(
            f"data.train: the label of all {len(examples):,} answers is "
            f"{'true' if wanted else 'false'}; kto needs answers of both kinds: add "
            "some, or use sft on those that are wanted"
        )
