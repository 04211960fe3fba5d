"""What a person at a terminal sees."""

import os
import pty
import re
import subprocess
import sys

import yaml

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_a_bar_shows_step_loss_rate_speed_and_time(settings, tmp_path):
    config = settings(output_dir=str(tmp_path / "run"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxpeft.train", "--config", str(tmp_path / "run.yaml")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={
            **os.environ,
            "TERM": "xterm",
            "COLUMNS": "100",
        },
    )
    os.close(theirs)
    shown = ""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side has closed
            break
        if not read:
            break
        shown += read.decode(errors="replace")
    os.close(ours)
    assert child.wait() == 0, shown
    text = ESCAPES.sub("", shown)
    bars = re.findall(
        r"step 8/8 \S+ loss \d+\.\d{4}  lr 1\.00e-02  [\d,]+ tok/s \d:\d\d:\d\d", text
    )
    assert bars, text
    assert " the step for batches of " in text and "state after step 8" in text
