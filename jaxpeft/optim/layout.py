"""How the leaves of a tree are treated: stacks of layers, and groups of tensors."""

import re
from dataclasses import dataclass

from jaxpeft.errors import InputError


@dataclass(frozen=True)
class Group:
    """Tensors with settings of their own.

    Attributes:
        pattern: a regular expression for the whole dotted name of a leaf.
        factor: their learning rate over everybody's.
        weight_decay: their decay; None for everybody's. What the mask leaves out does
            not decay in a group either.
        key: the configuration key that made the group, for messages.
    """

    pattern: str
    factor: float = 1.0
    weight_decay: float | None = None
    key: str = "optimizer.groups"


@dataclass(frozen=True)
class Layout:
    """How the leaves of a tree are treated, by their dotted names.

    Attributes:
        stacked: a regular expression for the whole name of the leaves whose first axis
            stacks layers, each a tensor of its own; None: no leaf is stacked.
        groups: the groups; the first one that matches a leaf counts.
    """

    stacked: str | None = None
    groups: tuple[Group, ...] = ()

    def is_stacked(self, name: str) -> bool:
        """Whether the first axis of the leaf of this name stacks tensors."""
        return self.stacked is not None and bool(re.fullmatch(self.stacked, name))

    def group(self, name: str) -> Group | None:
        """The group of the leaf of this name; None where no group matches it."""
        matching = (g for g in self.groups if re.fullmatch(g.pattern, name))
        return next(matching, None)

    def check(self, names: list[str]) -> None:
        """Raises InputError for the groups that none of these names belongs to."""
        problems = [
            f"{group.key}: no parameter that trains has a name that matches "
            f"{group.pattern!r}; remove it, or mend it: the names are such as "
            f"{', '.join(names[:3])}"
            for group in self.groups
            if not any(re.fullmatch(group.pattern, name) for name in names)
        ]
        if problems:
            raise InputError(*problems)
