"""A limit of time and memory for chat templates, which come with a checkpoint.

A template is a program by a stranger. transformers' sandbox keeps it from files and
objects, but not from looping for ever or building a string of gigabytes, and neither
can be interrupted in-process (one multiplication in C is enough). So the template
first renders a few of the user's conversations in a child process under rlimits; only
when that ends well is it used here. The child needs jinja2 alone (0.1 s; importing
transformers would take seconds), in an environment equal to transformers'; a test
holds the two together. A fork would be cheaper, but deadlocks under JAX's threads.
"""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

SECONDS = 5
_BUSY = 12  # times as long by the clock: a busy machine may leave a child little of it
MEMORY_BYTES = 1 << 30
# What a template may write: generous against any real one, small against a bomb.
_OUTPUT_PER_INPUT, _OUTPUT_FREE = 16, 1 << 20


# What ends a process whose processor time is used up; None on Windows.
_OUT_OF_TIME: int | None = getattr(signal, "SIGXCPU", None)

# What a template can raise besides jinja2's own errors.
FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
)


class Problem(NamedTuple):
    """Why a template cannot be used.

    Attributes:
        text: what is wrong, for a message.
        refused: the number of the first conversation that it raised an error for; None
            when it is the template itself that is at fault.
    """

    text: str
    refused: int | None = None


def check_template(
    template: str,
    conversations: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    *,
    seconds: float = SECONDS,
) -> Problem | None:
    """What is wrong with a template; None when it renders within its limits.

    Args:
        template: its source, in Jinja.
        conversations: {"messages": [...], "tools": [...] or None} for each of those
            that it has to render.
        variables: further names that the template sees (`bos_token`, ...).
        seconds: the limit of processor time for all conversations together; by the
            clock where a system limits no processor time.
    """
    request = {
        "template": template,
        "conversations": [dict(c) for c in conversations],
        "variables": dict(variables),
        "seconds": seconds,
    }
    # default: data read from parquet may hold dates and the like.
    return _ask_child(json.dumps(request, default=str), seconds)


@lru_cache(maxsize=16)  # training and evaluation data share a template
def _ask_child(request: str, seconds: float) -> Problem | None:
    # -P: the file's own folder must not hide installed packages from the child.
    command = [sys.executable, "-P", __file__]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    endless = Problem(f"it did not finish within {seconds:g} s (endless loop?)")
    with child:
        try:
            patience = _BUSY * seconds if _OUT_OF_TIME else seconds
            answer, errors = child.communicate(request, timeout=patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return endless
    if _OUT_OF_TIME and child.returncode == -_OUT_OF_TIME:
        return endless
    if child.returncode:
        last = errors.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        return Problem(
            f"it was stopped (limits: {seconds:g} s, {MEMORY_BYTES >> 20} MiB): "
            f"{last[0][:200]}"
        )
    text, refused = json.loads(answer)
    return Problem(text, refused) if text else None


def _child() -> None:
    """Answers the request on standard input with [problem or null, refused or null]."""
    request = json.load(sys.stdin)
    _limit_resources(request["seconds"])
    import jinja2

    answer: tuple[str | None, int | None] = (None, None)
    try:
        template = _environment().from_string(request["template"])
        for number in reversed(range(len(request["conversations"]))):
            try:
                _render(template, request, number)
            except (jinja2.TemplateError, *FAULTS) as error:
                answer = str(error) or type(error).__name__, number
    except jinja2.TemplateSyntaxError as error:
        answer = f"it is not valid Jinja (line {error.lineno}: {error.message})", None
    except (jinja2.TemplateError, *FAULTS) as error:
        answer = str(error) or type(error).__name__, None
    except _TooLong as error:
        answer = str(error), None
    sys.stdout.write(json.dumps(answer))


class _TooLong(Exception):
    pass


def _limit_resources(seconds: float) -> None:
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is the only limit
        return
    for kind, limit in (
        (resource.RLIMIT_CPU, math.ceil(seconds)),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            # The hard limit of processor time kills; the soft one says why.
            more = 1 if kind == resource.RLIMIT_CPU else 0
            resource.setrlimit(kind, (limit, limit + more))
        except (ValueError, OSError):
            # macOS refuses RLIMIT_AS; the others still hold.
            continue


def _render(template: Any, request: Mapping[str, Any], number: int) -> None:
    conversation = request["conversations"][number]
    size = len(json.dumps(conversation)) + len(request["template"])
    room = _OUTPUT_PER_INPUT * size + _OUTPUT_FREE
    for prompt in (False, True):
        written = 0
        for block in template.generate(
            messages=conversation["messages"],
            tools=conversation["tools"],
            documents=None,
            add_generation_prompt=prompt,
            **request["variables"],
        ):
            written += len(block)
            if written > room:
                raise _TooLong(f"it writes over {room} characters for a conversation")


def _environment() -> Any:
    """The environment of transformers' `apply_chat_template`."""
    from datetime import datetime

    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_render")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _render(self, caller):
            return caller()

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    _child()
