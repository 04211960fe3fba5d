"""Which files a run's configuration enters, from `train` to the first step.

    python scripts/trace_config.py             counts, and the files in their order
    python scripts/trace_config.py --calls     and every call that takes it

Runs configs/quickstart.yaml without evaluation up to its first step, and notes every
call of a function of the package of which an argument is the configuration or one of
its sections. A file that it enters has to be read by whoever wants to know what a key
does.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = [
    *("data.eval=null", "training.eval_steps=null", "training.samples=0"),
    "training.max_steps=1",
]


class Trace:
    """Notes the calls between the one named `first` and the one named `last`."""

    def __init__(self, first: str, last: str):
        self.first, self.last = first, last
        self.calls: list[tuple[str, str]] = []
        self.ended = False

    def __call__(self, frame: Any, event: str, _: Any) -> None:
        if event != "call" or self.ended:
            return
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        if "/jaxpeft/" not in path or "site-packages" in path:
            return
        if name == self.last and self.calls:
            self.ended = True
        values = (frame.f_locals.get(n) for n in _parameters(frame.f_code))
        if not any(map(_is_of_it, values)):
            return
        if self.calls or name == self.first:
            self.calls.append((path.rsplit("/jaxpeft/", 1)[1], name))


def _is_of_it(value: Any) -> bool:
    """Whether a value is the configuration or one of its sections."""
    return any(kind.__name__ == "Section" for kind in type(value).__mro__)


def _parameters(code: Any) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def main() -> None:
    """Runs, and prints what the configuration entered."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", action="store_true", help="print every call")
    args = parser.parse_args()

    from jaxpeft import cli, train

    trace = Trace("train", "fit")
    with tempfile.TemporaryDirectory() as folder:
        config = str(ROOT / "configs" / "quickstart.yaml")
        output = f"output_dir={folder}/run"
        sys.setprofile(trace)
        try:
            cli.run(train.main, ["--config", config, output, *OVERRIDES])
        finally:
            sys.setprofile(None)
    files = list(dict.fromkeys(path for path, _ in trace.calls))
    pairs = zip(trace.calls, trace.calls[1:])
    moves = sum(a[0] != b[0] for a, b in pairs)
    print(f"{len(files)} files, {len(trace.calls)} calls, {moves} moves between files")
    for path in files:
        print(f"  {path}")
    if args.calls:
        for path, name in trace.calls:
            print(f"{path}: {name}")


if __name__ == "__main__":
    main()
