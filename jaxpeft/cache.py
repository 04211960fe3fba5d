"""`python -m jaxpeft.cache`: what is kept between commands, its sizes, and its end."""

import time
from collections.abc import Sequence
from pathlib import Path

from jaxpeft import caches, cli, console
from jaxpeft.errors import InputError

WHICH = ("examples", "programs", "all")


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    parser = cli.parser(
        "cache",
        "Lists what is kept between commands: tokenized examples of each source, and "
        "compiled programs. Nothing of it is needed: what is missing is made anew.",
    )
    parser.add_argument(
        "--clear",
        nargs="?",
        const="examples",
        choices=WHICH,
        help="delete the stored examples (or programs, or all) in place of listing",
    )
    parser.add_argument(
        "--dir",
        metavar="DIR",
        type=cli.path,
        help="a folder of examples, data.cache_dir of a configuration",
    )
    args = parser.parse_args(list(argv))

    # Imported here, so that --help answers at once.
    from jaxpeft.data import store, stored_source

    root = caches.root()
    examples = Path(args.dir) if args.dir else root and root / stored_source.FOLDER
    programs = root and root / caches.PROGRAMS
    if examples is None:
        raise InputError(
            f"{caches.SETTING}: found {caches.OFF!r}, so nothing is kept; give --dir "
            "for a folder of data.cache_dir"
        )
    if args.clear in ("examples", "all"):
        _say_freed("examples", examples, store.clear(examples))
    if args.clear in ("programs", "all") and programs is not None:
        _say_freed("programs", programs, caches.clear(programs))
    if not args.clear:
        _list(examples, programs)
    return 0


def _say_freed(what: str, folder: Path, size: int) -> None:
    console.say(f"{what}: {_bytes(size)} deleted in {folder}")


def _list(examples: Path, programs: Path | None) -> None:
    from jaxpeft.data import store

    kept = store.kept(examples)
    for one in kept:
        days = (time.time() - one.used) / 86400
        when = "today" if days < 1 else f"{days:.0f} days ago"
        console.say(
            f"{_bytes(one.size):>9}  {one.examples:>12,} examples  "
            f"{one.tokens:>15,} tokens  used {when}  {one.path}"
        )
    total = sum(one.size for one in kept)
    console.say(f"{_bytes(total):>9}  in all: tokenized examples in {examples}")
    if programs is not None:
        size = caches.size(programs)
        console.say(f"{_bytes(size):>9}  compiled programs and plans in {programs}")


def _bytes(size: int) -> str:
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


if __name__ == "__main__":
    raise SystemExit(cli.process(main))
