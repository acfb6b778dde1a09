"""How a run was asked for, kept beside its checkpoints, so that it can be asked for again."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from slam.checkpoint import ABOUT, CHECKPOINT
from slam.io.frames import SourceError


def record(arguments: Sequence[str]) -> dict[str, Any]:
    """What is kept of a command line, and where it was given."""
    return {"arguments": list(arguments), "folder": os.getcwd()}


def recall(out: pathlib.Path) -> tuple[list[str], pathlib.Path]:
    """The arguments that were kept, and the working folder they were given in.

    Raises:
        SourceError: none were, or they cannot be read, or the working folder is gone.
    """
    path = out / CHECKPOINT / ABOUT
    if not path.is_file():
        if not out.is_dir():
            raise SourceError(f"{out}: no such folder; pass the folder of an unfinished run")
        if (out / "run.json").is_file():
            raise SourceError(f"{out}: this run has finished; there is nothing to go on with")
        raise SourceError(f"{out}: holds no unfinished run of `mast3r-slam run`")
    try:
        kept = json.loads(path.read_bytes())
        arguments, folder = [str(x) for x in kept["arguments"]], pathlib.Path(kept["folder"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: is damaged ({error}); run the source again") from error
    if not folder.is_dir():
        raise SourceError(f"{path}: the run was started in {folder}, which is gone; restore it")
    return arguments, folder
