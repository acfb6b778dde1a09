"""The command line: ``python -m weights_conversion {convert,inspect,download}``."""

import dataclasses
import math
import pathlib
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import rich.console
import rich.progress
import tyro

import mast3r_jax
from mast3r_jax import retrieval
from mast3r_jax.checkpoint import replacing
from weights_conversion.convert import (
    ConversionError,
    convert_mast3r,
    infer_config,
)
from weights_conversion.download import (
    LICENCE_NOTICE,
    PUBLISHED,
    Published,
    fetch,
    human,
    sha256_of,
)
from weights_conversion.inert_pickle import ArchiveError, printable
from weights_conversion.inspection import OURS, heads_of, inspect_file, plain, say
from weights_conversion.retrieval import (
    codebook_beside,
    convert_retrieval,
    is_retrieval,
    read_codebook,
)
from weights_conversion.rules import IGNORED, canonical
from weights_conversion.tensors import load_archive, read_safetensors, state_dict

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_NETWORK = {"model.safetensors", "config.json", "NOTICE.txt"}
_RETRIEVAL = {retrieval.WEIGHTS, retrieval.SETTINGS, retrieval.NOTICE}

_Positional = Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
_Count = Annotated[
    int | None,
    tyro.conf.arg(metavar="N", help_behavior_hint="(default: what the checkpoint tells)"),
]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn a published checkpoint into a folder of weights that this project loads."""

    input: _Positional
    """Checkpoint of the network or of the retrieval head (.pth, .safetensors), told by content."""
    output_dir: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to create, or to add to: network and retrieval head share one."""
    codebook: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The retrieval head's codebook (.pkl), if not beside it under its published name."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the stored parameters: float32 is exact, bfloat16 halves the file."""
    enc_heads: _Count = None
    """Attention heads of the encoder, if the checkpoint does not tell."""
    dec_heads: _Count = None
    """Attention heads of the decoders, if the checkpoint does not tell."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace the result of an earlier conversion."""


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a weights file holds; nothing in it is run."""

    input: _Positional
    """A .pth or .safetensors file."""


@dataclasses.dataclass(frozen=True)
class Download:
    """Fetch published weights: resumes after a cut, checks and records the SHA-256."""

    name: tyro.conf.Positional[Literal["mast3r", "retrieval", "codebook", "all"]] = "mast3r"
    """mast3r: the network (2.75 GB); retrieval and codebook: for loop closure; all: the three."""
    out: pathlib.Path = pathlib.Path("checkpoints")
    """Folder to download into."""
    yes: tyro.conf.FlagCreatePairsOff[bool] = False
    """Accept the licence of the weights without being asked."""
    sha256: str | None = None
    """Demand this checksum (64 hexadecimal digits)."""


Command = Convert | Inspect | Download


def _progress(console: rich.console.Console, *columns: Any) -> rich.progress.Progress:
    shown = ["{task.description}", rich.progress.BarColumn(), *columns]
    shown.append(rich.progress.TimeRemainingColumn())
    return rich.progress.Progress(
        *shown, console=console, transient=True, disable=not console.is_terminal
    )


# convert


@dataclasses.dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did."""

    used: int
    """Tensors of the checkpoint that became parameters."""
    ignored: Mapping[str, str]
    """Tensors that did not, by name, with the reason."""
    parameters: int
    nbytes: int
    """Size of the written safetensors file."""
    sha256: str
    """Of the written safetensors file."""


def _check_range(tensors: Mapping[str, np.ndarray], dtype: np.dtype, name: str) -> None:
    limit = float(ml_dtypes.finfo(dtype).max)
    for key, value in tensors.items():
        # NaN and infinity are refused by the conversion itself, with all the other problems.
        if value.size and limit < float(np.abs(value).max()) < math.inf:
            raise ArchiveError(
                f"{name}: tensor {printable(key)} has numbers beyond the range of {dtype}; "
                "use --dtype bfloat16 or float32"
            )


def ignored_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The tensors of a network that become no parameter, by name, with the reason."""
    reasons = {}
    for name in tensors:
        if canonical(name) != name and canonical(name) in tensors:
            reasons[name] = "the same tensor under a second name"
        for pattern, reason in IGNORED:
            if pattern.fullmatch(name):
                reasons[name] = reason
    return reasons


def _check_output(path: pathlib.Path, result: set[str], overwrite: bool) -> None:
    """Refuse an output folder that holds anything else, or a result that may not be replaced."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise ArchiveError(f"{path}: exists and is no folder; choose another output folder")
    inside = {entry.name for entry in path.iterdir()}
    if others := inside - _NETWORK - _RETRIEVAL:
        other = printable(min(others), 40)
        raise ArchiveError(f"{path}: holds other files ({other}); choose another output folder")
    if inside & result and not overwrite:
        raise ArchiveError(
            f"{path}: holds a conversion already; pass --overwrite, or choose another folder"
        )


def _notice(result: str, *sources: pathlib.Path) -> str:
    digests = "\n".join(f"{source.name}\nSHA-256 {sha256_of(source)}" for source in sources)
    return f"{result} was converted by mast3r-slam-jax from\n{digests}\n\n{LICENCE_NOTICE}\n"


def convert(command: Convert, console: rich.console.Console) -> ConversionSummary:
    """Run ``convert``: read, check, convert, write to a temporary folder, rename.

    Raises ``ArchiveError`` or ``OSError`` with the reason; then nothing is written.
    """
    if not command.input.exists():
        raise ArchiveError(
            f"{command.input}: no such file; `python -m weights_conversion download` brings the "
            "published ones"
        )
    is_head = is_retrieval(load_archive(command.input))
    _check_output(command.output_dir, _RETRIEVAL if is_head else _NETWORK, command.overwrite)
    summary = _convert_head(command) if is_head else _convert_network(command, console)
    _show_summary(command, summary, console)
    return summary


def _convert_network(command: Convert, console: rich.console.Console) -> ConversionSummary:
    source, dtype = command.input, DTYPES[command.dtype]
    if command.codebook is not None:
        raise ArchiveError(f"--codebook: is for a retrieval head, which {source} is not")
    archive = load_archive(source, verify=True)
    tensors = state_dict(archive, str(source))
    if OURS in tensors:
        raise ArchiveError(f"{source}: is converted already; load its folder with mast3r_jax.load")
    ignored = ignored_tensors(tensors)
    used = {name: value for name, value in tensors.items() if name not in ignored}
    try:
        config = infer_config(tensors, **heads_of(archive, command.enc_heads, command.dec_heads))
        _check_range(used, dtype, str(source))
        with _progress(console, rich.progress.TaskProgressColumn()) as progress:
            task = progress.add_task("converting", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            model = convert_mast3r(tensors, config, progress=show)
    except (ConversionError, mast3r_jax.ConfigError) as error:
        raise ArchiveError(f"{source}: {error}") from error
    try:
        with replacing(command.output_dir) as folder:
            mast3r_jax.save(folder, model, dtype=dtype)
            notice = _notice("model.safetensors", source)
            (folder / "NOTICE.txt").write_text(notice, encoding="utf-8")
            for name in _RETRIEVAL:
                if (command.output_dir / name).exists():
                    shutil.copy2(command.output_dir / name, folder / name)
            return _summary(folder / "model.safetensors", len(used), ignored)
    except mast3r_jax.CheckpointError as error:
        raise ArchiveError(str(error)) from error


def _convert_head(command: Convert) -> ConversionSummary:
    """Add a retrieval head and its codebook to the output folder."""
    source = command.input
    if command.dtype != "float32" or command.enc_heads or command.dec_heads:
        raise ArchiveError(
            f"{source}: is a retrieval head, which is always stored in float32 and has no "
            "attention; leave out --dtype, --enc-heads and --dec-heads"
        )
    archive = load_archive(source, verify=True)
    codebook = command.codebook or codebook_beside(source)
    content = read_codebook(codebook)
    try:
        model = convert_retrieval(archive, content)
    except ConversionError as error:
        raise ArchiveError(f"{source}, {codebook.name}: {error}") from error
    notice = _notice(retrieval.WEIGHTS, source, codebook)
    try:
        retrieval.save_retrieval(command.output_dir, model, notice=notice)
    except mast3r_jax.CheckpointError as error:
        raise ArchiveError(str(error)) from error
    # Every tensor of the head, and the centroids.
    return _summary(command.output_dir / retrieval.WEIGHTS, len(archive["model"]) + 1, {})


def _summary(weights: pathlib.Path, used: int, ignored: Mapping[str, str]) -> ConversionSummary:
    return ConversionSummary(
        used=used,
        ignored=ignored,
        parameters=sum(value.size for value in read_safetensors(weights).values()),
        nbytes=weights.stat().st_size,
        sha256=sha256_of(weights),
    )


def _show_summary(
    command: Convert, summary: ConversionSummary, console: rich.console.Console
) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, reason in summary.ignored.items():
        by_reason.setdefault(reason, []).append(name)
    lines = [
        f"{command.output_dir}: written",
        f"  tensors     {summary.used} used, {len(summary.ignored)} ignored",
    ]
    for reason, names in by_reason.items():
        indent = " " * 6
        lines += textwrap.wrap(f"    {len(names)}: {reason}", 80, subsequent_indent=indent)
        lines += [f"{indent} {printable(names[0])}{', ...' if len(names) > 1 else ''}"]
    lines += [
        f"  parameters  {summary.parameters:,} as {command.dtype}",
        f"  size        {human(summary.nbytes)}",
        f"  sha256      {summary.sha256}",
        "",
        LICENCE_NOTICE,
    ]
    say(console, "\n".join(lines))


# download


def _agree(command: Download, wanted: Sequence[Published], console: rich.console.Console) -> None:
    """Show the licence; return if the user accepts it."""
    say(console, f"{LICENCE_NOTICE}\n")
    for entry in wanted:
        about = f", about {human(entry.about_bytes)}" if entry.about_bytes else ""
        say(console, f"{entry.file_name}\n  {entry.what}{about}")
    if command.yes:
        return
    if not sys.stdin.isatty():
        raise ArchiveError("the licence above must be accepted: pass --yes if you agree to it")
    try:
        answer = console.input("Do you accept these terms? [y/N] ", markup=False)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ArchiveError("the licence was not accepted; nothing was downloaded")


def download(
    command: Download,
    console: rich.console.Console,
    published: Mapping[str, Published] = PUBLISHED,
) -> list[pathlib.Path]:
    """Run ``download``: the licence, the user's consent, then the files; returns their paths."""
    wanted = list(published.values()) if command.name == "all" else [published[command.name]]
    if command.sha256 and len(wanted) > 1:
        raise ArchiveError("--sha256: demands the checksum of one file; name that file")
    _agree(command, wanted, console)
    paths = []
    for entry in wanted:
        columns = rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()
        with _progress(console, *columns) as progress:
            tasks: dict[str, rich.progress.TaskID] = {}

            def show(what: str, done: int, total: int | None, tasks=tasks, progress=progress):
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], completed=done, total=total)

            got = fetch(entry, command.out, sha256=command.sha256, progress=show)
        state = "downloaded" if got.fetched else "was there already, and is intact"
        say(console, f"{got.path}: {state} ({human(got.size)})\n  sha256 {got.sha256}")
        paths.append(got.path)
    for path in paths:
        if path.suffix == ".pth":
            say(console, f"next: mast3r-slam convert {path} weights")
    return paths


def run(command: Command, console: rich.console.Console | None = None) -> int:
    """Run one command; bad input becomes one sentence on stderr and exit status 2."""
    console = console or rich.console.Console()
    try:
        if isinstance(command, Convert):
            convert(command, console)
        elif isinstance(command, Inspect):
            inspect_file(command.input, console)
        else:
            download(command, console)
    except (ArchiveError, OSError) as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; a download resumes when the command is run again", file=sys.stderr)
        return 130
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run it; returns the exit status."""
    command = tyro.cli(
        Convert | Inspect | Download,
        prog="python -m weights_conversion",
        description="Published MASt3R checkpoints to this project's weights, without PyTorch.",
        args=argv,
    )
    return run(command)
