"""What a configuration key is to a run that resumes, and to a program of several runs.

Every key says both at its definition: a section's keys with `json_schema_extra`, those
of components in their `Table`, each with one of the constants below.
"""

from pydantic.config import JsonDict

# What a key says under `identity`: whether a run of another value is another run.
IDENTITY = {
    "always": "another run",
    "set": "another run; but the default says nothing: to lack the key is the same",
    "steering": "another run only where evaluations steer the rate",
    "content": "another run where other things are read: base and batches have "
    "fingerprints of their own",
    "never": "the same run: they say where, how often and how long it works, not what "
    "it computes",
}
# What it says under `program`: whether the points of a sweep that one compiled
# program trains share its value.
PROGRAM = {
    "same": "shared: the program is compiled for it",
    "own": "each point's own, as an array or outside of the program",
    "rate": "each point's own, as an array of the rates of all steps; shared where "
    "evaluations steer the rate, which is then among the schedule's settings",
    "course": "likewise; shared also where the optimizer averages and does the warmup",
    "rank": "each point's own, padded with zeros to the largest; shared where the "
    "method or the optimizer would not leave the zeros alone",
}


def _says(identity: str, program: str = "same") -> JsonDict:
    assert identity in IDENTITY and program in PROGRAM, (identity, program)
    return {"identity": identity, "program": program}


ALWAYS = _says("always")
IF_SET = _says("set")
IF_STEERING = _says("steering")
CONTENT = _says("content")
NEVER = _says("never")
NUMBER = _says("always", "own")  # a program takes it as an array
PLACE = _says("never", "own")
RATE = _says("always", "rate")
RANK = _says("always", "rank")
COURSE = _says("always", "course")
