"""`optimizer.learning_rate: auto`: a range test chooses the rate, once for a run."""

from pathlib import Path

from jaxpeft import console
from jaxpeft.assembly import configuration
from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.assembly.run import Run
from jaxpeft.config import RunConfig
from jaxpeft.lr_find import ramp
from jaxpeft.lr_find.ramp import RangeTest
from jaxpeft.rundir.files import CONFIG


def open_run(cfg: RunConfig, resumes: bool) -> tuple[Run, RangeTest | None]:
    """The run with a learning rate that is a number, chosen by a range test for `auto`.

    A rate that is a number stays. A run that `resumes` from a checkpoint takes the rate
    that its config.yaml recorded. Any other has its rate chosen by a range test on the
    run's own arrays: one base is loaded, and what trains is held twice meanwhile. Where
    the whole model trains, it is loaded anew instead.

    Args:
        cfg: the configuration.
        resumes: whether there is a checkpoint to continue from.

    Returns:
        (the run, the range test that chose its rate or None).
    """
    if not cfg.optimizer.is_auto:
        return Run(cfg), None
    record = Path(cfg.output_dir) / CONFIG
    if resumes and record.is_file():
        section = configuration.open_config(record).optimizer
        return Run(cfg.at_rate(section.learning_rate)), None
    whole = gives_a_model(cfg.adapter)
    run = ramp.prepare(cfg)
    console.say("optimizer.learning_rate: auto, by a range test before training")
    test = ramp.conclude(ramp.range_test(run, keep=not whole), cfg)
    for line in test.describe():
        console.say(line)
    if not whole:
        return run.at_rate(test.suggestion), test
    del run  # before the model comes a second time
    return Run(cfg.at_rate(test.suggestion)), test
