"""Entry point of ``mast3r-slam``: parses the command line, turns bad input into one sentence."""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import tyro

import weights_conversion.cli
from experiments.training.config import TrainConfig
from experiments.training.presets import PRESETS
from mast3r_jax import CheckpointError, ConfigError
from slam.cli.bench import Bench, spelled_out
from slam.cli.demo import Demo
from slam.cli.export import Export
from slam.cli.invocation import recall
from slam.cli.run import BriefRun, Run, run_defaults
from slam.cli.train import BriefTrain, Train, train_defaults
from slam.cli.view import View
from slam.io.frames import SourceError
from slam.outputs import package_version

DESCRIPTION = """Real-time monocular dense SLAM without calibration, in JAX.

To see it work, on a room that is made on the spot:
  mast3r-slam demo

On your own images, with the published MASt3R weights:
  python -m weights_conversion download
  mast3r-slam convert checkpoints/*metric.pth weights
  mast3r-slam run video.mp4 --prior weights

To look at the results in a browser:
  mast3r-slam view outputs/video

To use what came out elsewhere:
  mast3r-slam export outputs/video --format colmap

To train a small network of your own:
  mast3r-slam train runs/first

To see how fast it is on this machine:
  mast3r-slam bench

mast3r-slam --version tells the version."""

_REFUSAL = re.compile(
    r"Value error .*?Error parsing (?:__tyro-dummy-inner__\.|--)?(\S+): (.*?) (?:[-─]{9}|For full)"
)
"""How tyro words a ValueError of a record, without line breaks and the sides of its box."""

BAD_INPUT = (SourceError, CheckpointError, ConfigError, OSError)
"""What bad input raises. Any other exception is a mistake of ours, and keeps its traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; those of the process when omitted.

    Returns:
        Exit status: 0 done; 1 done but no frame beyond the first could be placed, or training has
        diverged, or a benchmark does not keep what it is compared with; 2 the input cannot be used;
        3 the source broke off, and what came before is written; 130 interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--version"]:
        print(f"mast3r-slam {package_version('mast3r-slam-jax') or '(not installed)'}")
        return 0
    try:
        return _execute(arguments)
    except BAD_INPUT as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no results were written", file=sys.stderr)
        return 130


def _execute(arguments: list[str]) -> int:
    """Parse the command and carry it out."""
    with contextlib.ExitStack() as stack:
        unfinished = _asked(arguments, "--resume")
        if unfinished is not None:
            arguments, folder = _again(arguments, pathlib.Path(unfinished))
            stack.enter_context(contextlib.chdir(folder))
        brief = not {"-h", "--help"}.isdisjoint(arguments)
        arguments = spelled_out(["--help" if a == "--help-all" else a for a in arguments])
        command = _parse(arguments, brief)
        if isinstance(command, Run):
            command = dataclasses.replace(command, arguments=tuple(arguments))
        if isinstance(command, Train):
            # Which settings its options start from is known when the others are.
            command = _parse(arguments, brief, command.base_config())
        if isinstance(command, weights_conversion.cli.Convert):
            return weights_conversion.cli.run(command)
        _keep_compiled_programs()
        return command.execute()


def _again(arguments: list[str], unfinished: pathlib.Path) -> tuple[list[str], pathlib.Path]:
    """The command line of an unfinished run, to go on with it, and the folder it was given in.

    Raises:
        SourceError: there is no such run, or other options were given.
    """
    resume = ["--resume", str(unfinished)]
    others = [a for a in arguments[1:] if a not in (*resume, f"--resume={unfinished}")]
    if others:
        raise SourceError(
            f"--resume {unfinished}: goes on with that run's own settings; leave out {others[0]}"
        )
    first, folder = recall(unfinished)
    return [*first, "--resume", str(unfinished.absolute())], folder


def _parse(arguments: Sequence[str], brief: bool, training: TrainConfig = PRESETS["small"]) -> Any:
    """The command asked for; the options of ``train`` start from the settings ``training``.

    Raises:
        SourceError: the preset cannot be read; or a value that a configuration record refuses,
            which tyro would show in a box, under a name of its own.
        SystemExit: help was asked for, or the command line is no command.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                _commands(arguments, brief, training),
                prog="mast3r-slam",
                description=DESCRIPTION,
                args=arguments,
            )
    except SystemExit:
        words = " ".join(said.getvalue().translate(dict.fromkeys(map(ord, "│╭╮╰╯"), " ")).split())
        refusal = _REFUSAL.search(words)
        if refusal is None:
            sys.stderr.write(said.getvalue())
            raise
        option, why = refusal.groups()
        # Records name the field: "size=100 must be" becomes "--config.size=100 must be".
        field = re.match(r"(?:\w+\.)*(\w+)=", why)
        if field:
            why = f"--{option}.{field[1].replace('_', '-')}{why[field.end() - 1 :]}"
        else:
            why = f"--{option}: {why}"
        raise SourceError(why) from None


def _asked(arguments: Sequence[str], option: str) -> str | None:
    """The last value of an option of ``run`` that others start from, so that it is read first."""
    value = None
    if arguments[:1] == ["run"]:
        for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
            if argument == option and following:
                value = following
            elif argument.startswith(f"{option}="):
                value = argument.removeprefix(f"{option}=")
    return value


def _commands(arguments: Sequence[str], brief: bool, training: TrainConfig) -> Any:
    """The union of all commands, as tyro reads it; ``run`` starts from a preset's values."""
    # The brief classes are the others in all but what their help shows.
    run, train = (BriefRun, BriefTrain) if brief else (Run, Train)
    defaults = run_defaults(
        run, _asked(arguments, "--preset") or "base", _asked(arguments, "--prior")
    )
    demo = tyro.conf.subcommand("demo", description=Demo.__doc__)
    of_run = tyro.conf.subcommand("run", description=Run.__doc__, default=defaults)
    of_train = tyro.conf.subcommand(
        "train",
        description="Train a small two-view prior on rooms that are made up as it learns.",
        default=train_defaults(train, training),
    )
    convert = weights_conversion.cli.Convert
    of_convert = tyro.conf.subcommand(
        "convert",
        description="Turn a published checkpoint (.pth, .safetensors) into weights for `run`.",
    )
    of_export = tyro.conf.subcommand(
        "export", description="Write the results of a run for COLMAP, nerfstudio, Blender, evo."
    )
    of_bench = tyro.conf.subcommand(
        "bench",
        description="Measure how fast every stage is on this machine, and beside others.",
    )
    of_view = tyro.conf.subcommand(
        "view", description="Look at the results of a run in the browser, until Ctrl-C."
    )
    return (
        Annotated[Demo, demo]  # pyright: ignore[reportOperatorIssue]
        | Annotated[run, of_run]
        | Annotated[Export, of_export]
        | Annotated[train, of_train]
        | Annotated[convert, of_convert]
        | Annotated[Bench, of_bench]
        | Annotated[View, of_view]
    )


def _keep_compiled_programs() -> None:
    """Let a second run start without compiling, unless the user has arranged this already."""
    name = "jax_compilation_cache_dir"
    if getattr(jax.config, name) is None:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
        jax.config.update(name, str(root / "mast3r-slam-jax" / "compiled"))
        # A run has a hundred small ones, too.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
