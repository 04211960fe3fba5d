"""What numbers of an objective may be."""

from collections.abc import Collection

from jaxpeft.errors import InputError


def positive(**numbers: float) -> None:
    """Checks that numbers are above 0.

    Args:
        numbers: by their keys.

    Raises:
        InputError: one is not.
    """
    for name, value in numbers.items():
        if value <= 0:
            raise InputError(f"objective.{name}: found {value}; must be greater than 0")


def at_least_zero(**numbers: float) -> None:
    """Checks that numbers are not below 0.

    Args:
        numbers: by their keys.

    Raises:
        InputError: one is.
    """
    for name, value in numbers.items():
        if value < 0:
            raise InputError(f"objective.{name}: found {value}; must be 0 or more")


def smoothing(value: float, loss_type: str, smoothed: Collection[str]) -> None:
    """Checks the share of labels that are taken to be wrong.

    Args:
        value: the share.
        loss_type: the loss that it is given for.
        smoothed: the losses that have a use for it.

    Raises:
        InputError: it is no share below a half, or the loss has no use for it.
    """
    if not 0 <= value < 0.5:
        raise InputError(
            f"objective.label_smoothing: found {value}; must be at least 0 and less "
            "than 0.5, where labels say nothing"
        )
    if value and loss_type not in smoothed:
        raise InputError(
            f"objective.label_smoothing: found {value} with loss_type {loss_type!r}, "
            f"which has no use for it; remove it, or use {' or '.join(smoothed)}"
        )
