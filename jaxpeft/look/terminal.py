"""The look at the data in a terminal: color where there is one, marks elsewhere."""

import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from jaxpeft.data.shown import CLOSE, OPEN, Piece, visible
from jaxpeft.look.facts import Facts
from jaxpeft.look.first import Record
from jaxpeft.look.histogram import Bar

_RESET = "\x1b[0m"
_HEADING, _SOFT = "\x1b[1m", "\x1b[2m"
# (learned, special): green is learned, underlined are special tokens.
_COLORS = {
    (False, False): "",
    (False, True): "\x1b[36;4m",
    (True, False): "\x1b[1;32m",
    (True, True): "\x1b[1;32;4m",
}
_WIDEST, _WIDTH = 40, 96  # characters of a bar, and of a line of figures


def has_color(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard output is colored: on a terminal, unless told not to.

    Args:
        environ: NO_COLOR and TERM=dumb forbid color, FORCE_COLOR wants it in a pipe.
    """
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return bool(environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def legend(color: bool) -> str:
    """A line that says what the marks mean."""
    if not color:
        return f"{OPEN}learned{CLOSE}: the tokens that count in the loss"
    shown = [
        _painted("learned", _COLORS[True, False]),
        _painted("special token", _COLORS[False, True]),
        _painted("learned special token", _COLORS[True, True]),
    ]
    return ", ".join([*shown, "the rest is read only"])


def overview(found: Facts, color: bool) -> Iterator[str]:
    """The lines about a data set: its sources, figures, histogram and remarks.

    Args:
        found: what there is to say.
        color: whether to color them.
    """
    yield heading(found.lines[0], color)
    yield from found.lines[1:]
    yield from table([found.columns, *found.sources])
    width = max(len(name) for name, _ in found.figures) + 1
    for name, value in found.figures:
        begin = f"  {name + ':':<{width}} "
        yield textwrap.fill(
            visible(value, " "),
            _WIDTH,
            initial_indent=begin,
            subsequent_indent=" " * len(begin),
            break_on_hyphens=False,
        )
    yield "  examples by length (tokens):"
    yield from bars(found.bars)


def bars(found: Sequence[Bar]) -> Iterator[str]:
    """The lines of a histogram."""
    most = max(bar.count for bar in found)
    wide = max(len(bar.label) for bar in found)
    numbers = len(f"{most:,}")
    for bar in found:
        length = round(_WIDEST * bar.count / max(most, 1))
        drawn = "#" * (length or (1 if bar.count else 0))
        yield f"    {bar.label:>{wide}}  {bar.count:>{numbers},}  {drawn}".rstrip()


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table: the first column, a text of any length, comes last."""
    widths = [max(map(len, column)) for column in zip(*rows)][1:]
    for name, *numbers in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(numbers, widths)]
        yield "  " + "  ".join([*cells, visible(name, " ")])


def shown(path: str, found: Sequence[Record], color: bool) -> Iterator[str]:
    """The lines of a source's first records.

    Args:
        path: the source.
        found: the records.
        color: whether to color them.
    """
    for record in found:
        for part in record.parts:
            title = ", ".join(filter(None, (record.title, part.name)))
            yield ""
            yield heading(f"{visible(path, ' ')}, {title}: {part.about}", color)
            yield from text(part.begins, color)
            if part.hidden:
                yield f"  ... {part.hidden:,} tokens ..."
                yield from text(part.ends, color)


def text(found: Sequence[Piece], color: bool) -> Iterator[str]:
    """The lines of an example's text.

    Args:
        found: its pieces.
        color: whether what is learned is colored, or stands in brackets.
    """
    written = ""
    if color:
        for kind, group in groupby(found, lambda one: (one.learned, one.special)):
            lines = visible("".join(one.text for one in group)).split("\n")
            written += "\n".join(_painted(line, _COLORS[kind]) for line in lines)
    else:
        for learned, group in groupby(found, lambda one: one.learned):
            own = visible("".join(one.text for one in group))
            written += f"{OPEN}{own}{CLOSE}" if learned else own
    for line in written.removesuffix("\n").split("\n"):
        yield f"  {line}"


def heading(line: str, color: bool) -> str:
    """A line that begins a part."""
    return _painted(line, _HEADING) if color else line


def _painted(line: str, code: str) -> str:
    return f"{code}{line}{_RESET}" if code and line else line
