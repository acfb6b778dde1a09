"""A training process that kills itself without warning: ``python -m ...killed FOLDER PLACE``."""

import os
import pathlib
import signal
import sys
from typing import Any

from experiments.training import metrics, run_folder
from experiments.training.trainer import train
from tests.experiments.training import cheap

CONFIG = cheap.changed(
    cheap.CONFIG,
    dispatch={"loop": "no", "seconds": 1e-6},
    # A row of metrics and a checkpoint after every step.
    checkpoints={"minutes": 1e-6, "keep": 2},
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_call(owner: Any, name: str, number: int) -> None:
    original, calls = getattr(owner, name), []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            die()
        return original(*arguments, **named)

    setattr(owner, name, counted)


def kill_before_rename(number: int) -> None:
    """When all of a checkpoint is written but its name."""
    for name in ("rename", "replace"):
        original, calls = getattr(os, name), []

        def renamed(source: Any, target: Any, *, _do=original, _calls=calls, **named: Any) -> Any:
            if pathlib.Path(target).name.isdigit():
                _calls.append(target)
                if len(_calls) == number:
                    die()
            return _do(source, target, **named)

        setattr(os, name, renamed)


PLACES = {
    "in a step": lambda: kill_at_call(metrics.MetricLog, "add", 5),
    "while a checkpoint is written": lambda: kill_before_rename(2),
    "before the exports": lambda: kill_at_call(run_folder, "export_parts", 2),
}


if __name__ == "__main__":
    PLACES[sys.argv[2]]()
    metrics.draw_curves = lambda path, rows: None  # which takes longer than all the rest
    train(CONFIG, pathlib.Path(sys.argv[1]), ingredients=cheap.ingredients, shares=False)
