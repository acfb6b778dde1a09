"""Entry point of ``mast3r-slam``: parses the command line, turns bad input into one sentence."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro

import weights_conversion.cli
from mast3r_jax import CheckpointError, ConfigError
from slam.cli.demo import Demo
from slam.cli.run import BriefRun, Run
from slam.io.frames import SourceError

DESCRIPTION = """Real-time monocular dense SLAM without calibration, in JAX.

To see it work, on a room that is made on the spot:
  mast3r-slam demo

On your own images, with the published MASt3R weights:
  python -m weights_conversion download
  mast3r-slam convert checkpoints/*metric.pth weights
  mast3r-slam run video.mp4 --prior weights"""

BAD_INPUT = (SourceError, CheckpointError, ConfigError, OSError)
"""What bad input raises. Any other exception is a mistake of ours, and keeps its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process when omitted.

    Returns:
        Exit status: 0 done, 1 done but no frame beyond the first could be placed, 2 the input
        cannot be used.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    brief = not {"-h", "--help"}.isdisjoint(arguments)
    arguments = ["--help" if a == "--help-all" else a for a in arguments]
    command = tyro.cli(
        _commands(BriefRun if brief else Run),
        prog="mast3r-slam",
        description=DESCRIPTION,
        args=arguments,
    )
    try:
        if isinstance(command, weights_conversion.cli.Convert):
            return weights_conversion.cli.run(command)
        _keep_compiled_programs()
        return command.execute()
    except BAD_INPUT as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def _commands(run: type[Run]) -> Any:
    """The union of all commands, as tyro reads it."""
    demo = tyro.conf.subcommand("demo", description=Demo.__doc__)
    # BriefRun is Run in all but what its help shows.
    of_run = tyro.conf.subcommand("run", description=Run.__doc__)
    convert = weights_conversion.cli.Convert
    of_convert = tyro.conf.subcommand(
        "convert",
        description="Turn a published checkpoint (.pth, .safetensors) into weights for `run`.",
    )
    return (
        Annotated[Demo, demo]  # pyright: ignore[reportOperatorIssue]
        | Annotated[run, of_run]
        | Annotated[convert, of_convert]
    )


def _keep_compiled_programs() -> None:
    """Let a second run start without compiling, unless the user has arranged this already."""
    name = "jax_compilation_cache_dir"
    if getattr(jax.config, name) is None:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update(name, str(root / "mast3r-slam-jax" / "compiled"))
