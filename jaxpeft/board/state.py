"""Where the board keeps its jobs: a folder of this user's own, outside of all runs.

Folders of runs are unpacked from archives, copied and shared, and a job is something
that is started. So nothing that comes with a run can stand among the jobs.
"""

import hashlib
import os
from pathlib import Path

SETTING = "XDG_STATE_HOME"


def folder(top: Path) -> Path:
    """The folder of the jobs about a folder of runs; every board over it has the same.

    Args:
        top: the folder of runs.
    """
    given = Path(os.environ.get(SETTING, ""))
    # A relative one is to be ignored, says the specification of these folders.
    home = given if given.is_absolute() else Path.home() / ".local" / "state"
    name = os.fsencode(os.path.realpath(top))
    digest = hashlib.blake2b(name, digest_size=8).hexdigest()
    return home / "jaxpeft" / "board" / digest
