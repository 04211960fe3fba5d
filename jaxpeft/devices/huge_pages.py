"""Huge pages for the heap: on a CPU, XLA maps its temporaries anew in every step.

The page faults that this costs are a share of each step (docs/benchmarks.md has the
figure). glibc can ask for huge pages, but only as a program starts.
"""

import os
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SWITCH = "JAXPEFT_HUGE_PAGES"


def restart_with_huge_pages() -> None:
    """Starts this program over with huge pages, where that helps and is possible.

    Keeps the process number and the arguments. Does nothing a second time, where the
    kernel gives no huge pages on request, or with JAXPEFT_HUGE_PAGES=0.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if os.environ.get(SWITCH, "1") == "0" or "glibc.malloc.hugetlb" in tunables:
        return
    try:
        on_request = "[madvise]" in SETTING.read_text()
    except OSError:
        return
    if on_request and sys.executable and sys.orig_argv:
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{TUNABLE}".lstrip(":")
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
