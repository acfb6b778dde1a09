"""Entry point of ``mast3r-slam``: parses the command line, turns bad input into one sentence."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro

import weights_conversion.cli
from slam.cli.demo import Demo
from slam.cli.run import Run
from slam.io.frames import SourceError

DESCRIPTION = """Real-time monocular dense SLAM without calibration, in JAX.

Start with `mast3r-slam demo`: it builds a furnished room, walks a camera through it and
reconstructs both, in a few minutes and without any download."""

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo", description=Demo.__doc__)]
    | Annotated[Run, tyro.conf.subcommand("run", description=Run.__doc__)]
    | Annotated[
        weights_conversion.cli.Convert,
        tyro.conf.subcommand("convert", description=weights_conversion.cli.Convert.__doc__),
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0 done, 1 done but nothing could be tracked, 2 the input cannot be used.
    """
    command = tyro.cli(Command, prog="mast3r-slam", description=DESCRIPTION, args=arguments)
    _keep_compiled_programs()
    try:
        return command.execute()
    except (SourceError, ValueError, OSError) as error:
        print(f"mast3r-slam: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mast3r-slam: stopped", file=sys.stderr)
        return 130


def _keep_compiled_programs() -> None:
    """Let a second run start without compiling, unless the user has arranged this already."""
    if jax.config.jax_compilation_cache_dir is None:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(root / "mast3r-slam-jax" / "compiled"))
