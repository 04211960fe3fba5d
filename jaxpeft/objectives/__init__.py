"""What a training step minimises, and what an evaluation reports: one file each."""

from jaxpeft.config import Table
from jaxpeft.objectives.objective import Loss, Objective
from jaxpeft.objectives.sft import sft

# Their keyword arguments are the keys of the section `objective`.
OBJECTIVES = {"sft": sft}
TABLE = Table(OBJECTIVES)

__all__ = ["OBJECTIVES", "TABLE", "Loss", "Objective", "sft"]
