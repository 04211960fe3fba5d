"""What a trained model says of each record of the evaluation data, as a file."""

import json
from pathlib import Path
from typing import Any

from jaxpeft import console, data, replacing
from jaxpeft.assembly.trained import Evaluated
from jaxpeft.devices import sharding
from jaxpeft.devices.compiled import Compiled
from jaxpeft.errors import InputError
from jaxpeft.objectives import evaluation


def write(one: Evaluated, path: Path) -> None:
    """Writes what the model says of each record, one JSON object a line.

    Args:
        one: see `to_evaluate`; its objective says something of single records.
        path: the file.

    Raises:
        InputError: where it cannot be written.
    """
    base, params, _, objective, batches, mesh = one
    said = objective.predictions
    assert said is not None  # as the command has seen to

    def of_batch(params: Any, batch: data.Batch) -> Any:
        return said.scores(params, batch, base.cfg)

    step = Compiled(of_batch, "predictions", lambda text: None, mesh=mesh)
    with console.Work("predictions, in batches", len(batches)) as work:
        scores = evaluation.streamed(
            (step(params, sharding.placed(batch, mesh)) for batch in batches),
            lambda done: work.advance(),
        )
    texts = [
        json.dumps(line, ensure_ascii=False) + "\n"
        for of_rows, batch in zip(scores, batches, strict=True)
        for line in said.lines(of_rows, batch)
    ]
    try:
        replacing.write_text(path, "".join(texts))
    except OSError as error:
        raise InputError(
            f"--predictions: {str(path)!r} cannot be written ({error.strerror}); name "
            "a file in a folder that exists"
        ) from None
