"""Hostile templates are stopped in the child; the child's sandbox is transformers'."""

import signal
import subprocess
import sys
import threading

import pytest

from jaxpeft.data import template_guard
from jaxpeft.data.template_guard import check_template

TALK = [{"messages": [{"role": "user", "content": "hi"}], "tools": None}]


def check(template, seconds=1):
    return check_template(template, TALK, {"bos_token": "<s>"}, seconds=seconds)


def test_a_plain_template_passes():
    assert check(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    ) is (None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        # endless: each loop is within the sandbox's own limit of 100,000 steps
        "{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}",
        # one operation in C, which no signal handler could interrupt
        "{{ (9 ** (9 ** 9)) % 7 }}",
        # memory, at once and by doubling
        "{{ ('a' * 9999999999) | length }}",
        "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}"
        "{% set n.s = n.s ~ n.s %}{% endfor %}",
        # a text that is small enough to build but not to keep
        "{{ 'a' * 100000000 }}",
    ],
)
def test_loops_and_bombs_are_stopped(template):
    problem = check(template)
    assert problem is not None
    assert problem.refused is None


@pytest.mark.skipif(sys.platform == "win32", reason="it limits no processor time")
def test_a_busy_machine_does_not_make_a_template_endless(monkeypatch):
    started = subprocess.Popen

    def starved(*args, **kwargs):
        child = started(*args, **kwargs)
        child.send_signal(signal.SIGSTOP)
        threading.Timer(1.5, child.send_signal, [signal.SIGCONT]).start()
        return child

    monkeypatch.setattr(template_guard.subprocess, "Popen", starved, raising=True)
    assert check("{{ messages[0].content }} late", seconds=1) is None


def test_escapes_are_refused_by_the_sandbox():
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    problem = check(template)
    assert problem is not None
    assert "unsafe" in problem.text


def test_syntax_errors_name_the_line():
    problem = check("fine\n{% for %}")
    assert problem is not None
    assert "line 2" in problem.text
    assert problem.refused is None


def test_a_templates_own_refusal_names_the_conversation():
    problem = check("{{ raise_exception('no ' ~ messages[0].role) }}")
    assert problem is not None
    assert (problem.text, problem.refused) == ("no user", 0)


def test_the_child_has_the_environment_of_transformers():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("{{ messages }}").environment
    ours = template_guard._environment()
    assert theirs.globals.keys() == ours.globals.keys()
    assert theirs.filters.keys() == ours.filters.keys()
    assert theirs.tests.keys() == ours.tests.keys()
    assert type(theirs) is type(ours)
    tags = [
        {t for e in env.extensions.values() for t in e.tags} for env in (theirs, ours)
    ]
    assert tags[0] == tags[1]
    assert (theirs.trim_blocks, theirs.lstrip_blocks) == (
        ours.trim_blocks,
        ours.lstrip_blocks,
    )
