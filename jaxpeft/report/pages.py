"""Pages about a run and about a sweep: one HTML file each, which needs nothing else."""

from jaxpeft.report.run_page import write_run
from jaxpeft.report.sweep_page import write_sweep

__all__ = ["write_run", "write_sweep"]
