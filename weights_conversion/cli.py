"""The command line: ``python -m weights_conversion {convert,inspect,download}``."""

import contextlib
import dataclasses
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text
import tyro

from weights_conversion.download import (
    LICENCE_NOTICE,
    PUBLISHED,
    Published,
    fetch,
    human,
    sha256_of,
)
from weights_conversion.inert_pickle import ArchiveError, printable
from weights_conversion.tensors import load_archive, read_safetensors, state_dict

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_SECOND_NAME = "the same tensor as"
_OURS = "encoder.patch_embed.kernel"  # a name only this project's own weights have
_RESULT = {"model.safetensors", "config.json", "NOTICE.txt"}

_Positional = Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")]
_Count = Annotated[int | None, tyro.conf.arg(metavar="N")]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Turn a published checkpoint (.pth or .safetensors) into a folder this project loads."""

    input: _Positional
    """The checkpoint, recognised by its content."""
    output_dir: Annotated[pathlib.Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT-DIR")]
    """The folder to create: model.safetensors, config.json, NOTICE.txt."""
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


def _say(console: rich.console.Console, text: str) -> None:
    """Print text as it is: paths and checksums whole, brackets no markup."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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
    """Size of the written model.safetensors."""
    sha256: str
    """Of the written model.safetensors."""


class _Watched(Mapping[str, np.ndarray]):
    """Tensors that tell whenever one of them is looked at."""

    LOOKS = 4
    """How often the conversion looks at a tensor: for its name, shape, finiteness and numbers."""

    def __init__(self, tensors: Mapping[str, np.ndarray], looked: Callable[[], None]):
        self._tensors, self._looked = tensors, looked

    def __getitem__(self, name: str) -> np.ndarray:
        self._looked()
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _heads(archive: Mapping[str, Any], enc: int | None, dec: int | None) -> dict[str, int]:
    """Numbers of attention heads: as given, else from the training arguments in the checkpoint."""
    from weights_conversion.convert import heads_from_model_string

    arguments = archive.get("args")
    text = arguments.get("model") if isinstance(arguments, dict) else None
    told = heads_from_model_string(text[:10_000]) if isinstance(text, str) else {}
    given = {"enc_heads": enc, "dec_heads": dec}
    return told | {side: count for side, count in given.items() if count is not None}


def _check_range(tensors: Mapping[str, np.ndarray], dtype: np.dtype, name: str) -> None:
    limit = float(ml_dtypes.finfo(dtype).max)
    for key, value in tensors.items():
        # NaN compares false: the conversion itself refuses it, with all the other problems.
        if value.size and float(np.abs(value).max()) > limit:
            raise ArchiveError(
                f"{name}: tensor {printable(key)} has numbers beyond the range of {dtype}; "
                "use --dtype bfloat16 or float32"
            )


def _ignored(tensors: Mapping[str, np.ndarray], used: set[str]) -> dict[str, str]:
    """Why the tensors that fill nothing fill nothing."""
    from weights_conversion.rules import IGNORED, canonical

    names = {canonical(name): name for name in used}
    reasons = {}
    for name in tensors:
        if name in used:
            continue
        reasons[name] = next((why for pattern, why in IGNORED if pattern.fullmatch(name)), "")
        if not reasons[name]:
            reasons[name] = f"{_SECOND_NAME} {names[canonical(name)]}"
    return reasons


@contextlib.contextmanager
def _new_folder(path: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes ``path`` if the block ends well, and vanishes otherwise."""
    path = path.absolute()
    if path.exists() or path.is_symlink():
        if path.is_symlink() or not path.is_dir():
            raise ArchiveError(f"{path}: exists and is no folder; choose another output folder")
        inside = {entry.name for entry in path.iterdir()}
        if inside - _RESULT:
            raise ArchiveError(
                f"{path}: holds other files ({printable(min(inside - _RESULT), 40)}); choose "
                "another output folder"
            )
        if inside and not overwrite:
            raise ArchiveError(
                f"{path}: holds a conversion already; pass --overwrite, or choose another folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as workshop:
        fresh, old = pathlib.Path(workshop) / "new", pathlib.Path(workshop) / "old"
        yield fresh
        if path.exists():
            path.rename(old)  # vanishes with the workshop
        fresh.rename(path)


def _notice(source: pathlib.Path) -> str:
    return (
        f"model.safetensors was converted by mast3r-slam-jax from\n{source.name}\n"
        f"SHA-256 {sha256_of(source)}\n\n{LICENCE_NOTICE}\n"
    )


def convert(command: Convert, console: rich.console.Console) -> ConversionSummary:
    """Run ``convert``: read, check, convert, write to a temporary folder, rename.

    Raises ``ArchiveError`` or ``OSError`` with the reason; then nothing is written.
    """
    # Imported late: the other commands do not need JAX.
    import mast3r_jax
    from weights_conversion.convert import (
        ConversionError,
        convert_mast3r,
        infer_config,
        plan_conversion,
    )

    try:
        with _new_folder(command.output_dir, command.overwrite) as folder:
            archive = load_archive(command.input, verify=True)
            tensors = state_dict(archive, str(command.input))
            if _OURS in tensors:
                raise ArchiveError(
                    f"{command.input}: is converted already; load its folder with mast3r_jax.load"
                )
            config = infer_config(tensors, **_heads(archive, command.enc_heads, command.dec_heads))
            used = {assignment.source for assignment in plan_conversion(tensors, config)}
            dtype = DTYPES[command.dtype]
            _check_range({name: tensors[name] for name in used}, dtype, str(command.input))
            with _progress(console, rich.progress.TaskProgressColumn()) as progress:
                task = progress.add_task("converting", total=_Watched.LOOKS * len(tensors))
                watched = _Watched(tensors, lambda: progress.advance(task))
                model = convert_mast3r(watched, config)
            mast3r_jax.save(folder, model, dtype=dtype)
            (folder / "NOTICE.txt").write_text(_notice(command.input))
            weights = folder / "model.safetensors"
            summary = ConversionSummary(
                used=len(used),
                ignored=_ignored(tensors, used),
                parameters=sum(value.size for value in read_safetensors(weights).values()),
                nbytes=weights.stat().st_size,
                sha256=sha256_of(weights),
            )
    except (ConversionError, mast3r_jax.ConfigError, mast3r_jax.CheckpointError) as error:
        raise ArchiveError(f"{command.input}: {error}") from error
    _show_summary(command, summary, console)
    return summary


def _show_summary(
    command: Convert, summary: ConversionSummary, console: rich.console.Console
) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, reason in summary.ignored.items():
        key = "second names of tensors used" if reason.startswith(_SECOND_NAME) else reason
        by_reason.setdefault(key, []).append(name)
    lines = [
        f"{command.output_dir}: written",
        f"  tensors     {summary.used} used, {len(summary.ignored)} ignored",
    ]
    for reason, names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines += [f"    {printable(names[0])}{more}:", f"      {reason}"]
    lines += [
        f"  parameters  {summary.parameters:,} as {command.dtype}",
        f"  size        {human(summary.nbytes)}",
        f"  sha256      {summary.sha256}",
        "",
        LICENCE_NOTICE,
    ]
    _say(console, "\n".join(lines))


# inspect


@dataclasses.dataclass(frozen=True)
class Group:
    """The tensors of one part of a checkpoint."""

    name: str
    tensors: int
    parameters: int
    """Numbers; what several names share is counted once, with the first."""
    dtypes: tuple[str, ...]


def group_tensors(tensors: Mapping[str, np.ndarray]) -> list[Group]:
    """Tensors by the first part of their name (the first two inside a head), in file order."""
    members: dict[str, list[np.ndarray]] = {}
    for key, value in tensors.items():
        parts = key.split(".")
        depth = 2 if parts[0].startswith("downstream_head") and len(parts) > 2 else 1
        members.setdefault(".".join(parts[:depth]), []).append(value)
    seen: set[tuple[int, tuple[int, ...]]] = set()
    groups = []
    for name, values in members.items():
        count = 0
        for value in values:
            place = (value.ctypes.data, value.shape)
            count += 0 if place in seen else value.size
            seen.add(place)
        dtypes = tuple(sorted({str(value.dtype) for value in values}))
        groups.append(Group(name, len(values), count, dtypes))
    return groups


def _describe(value: Any) -> str:
    """One line about an entry of a checkpoint; never recurses, the entry may contain itself."""
    if isinstance(value, np.ndarray):
        return f"tensor {value.dtype} {list(value.shape)}"
    if isinstance(value, dict):
        tensors = sum(isinstance(item, np.ndarray) for item in value.values())
        return f"{tensors} tensors" if tensors else f"{len(value)} entries"
    if isinstance(value, (list, tuple, set)):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {printable(value, 48)}"


def inspect(command: Inspect, console: rich.console.Console) -> None:
    """Run ``inspect``: entries, tensors by part, and the configuration they imply."""
    archive = load_archive(command.input)
    size = command.input.stat().st_size
    _say(console, f"{command.input} ({human(size)})")
    if not all(isinstance(value, np.ndarray) for value in archive.values()):
        entries = rich.table.Table("entry", "holds", box=rich.box.SIMPLE_HEAD)
        for key, value in archive.items():
            entries.add_row(rich.text.Text(printable(key, 24)), rich.text.Text(_describe(value)))
        console.print(entries)
    tensors = state_dict(archive, str(command.input))
    table = rich.table.Table("part", box=rich.box.SIMPLE_HEAD, show_footer=True)
    for heading in ("tensors", "parameters"):
        table.add_column(heading, justify="right")
    table.add_column("types")
    groups = group_tensors(tensors)
    for group in groups:
        name = rich.text.Text(printable(group.name, 40))
        table.add_row(name, f"{group.tensors}", f"{group.parameters:,}", ", ".join(group.dtypes))
    table.columns[0].footer = "total"
    table.columns[1].footer = f"{len(tensors)}"
    table.columns[2].footer = f"{sum(group.parameters for group in groups):,}"
    console.print(table)
    _say(console, _network(archive, tensors))


def _network(archive: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """The configuration that a state dict implies, or why there is none."""
    from weights_conversion.convert import ConversionError, infer_config

    if _OURS in tensors:
        return "weights of this project: load their folder with mast3r_jax.load"
    try:
        config = infer_config(tensors, **_heads(archive, None, None))
    except ConversionError as error:
        first, *problems = str(error).splitlines()
        shown = [first, *problems[:3]]
        shown += [f"  ... and {len(problems) - 3} more"] if len(problems) > 3 else []
        return "not a MASt3R network: " + "\n".join(shown)
    fields = [f"  {name:<15} {value}" for name, value in dataclasses.asdict(config).items()]
    return "\n".join(["network (MASt3RConfig)", *fields])


# download


def _agree(command: Download, wanted: Sequence[Published], console: rich.console.Console) -> None:
    """Show the licence; return if the user accepts it."""
    _say(console, f"{LICENCE_NOTICE}\n")
    for entry in wanted:
        about = f", about {human(entry.about_bytes)}" if entry.about_bytes else ""
        _say(console, f"{entry.file_name}\n  {entry.what}{about}")
    if command.yes:
        return
    if not sys.stdin.isatty():
        raise ArchiveError("the licence above must be accepted: pass --yes if you agree to it")
    if console.input("Do you accept these terms? [y/N] ", markup=False).strip().lower() != "y":
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
        _say(console, f"{got.path}: {state} ({human(got.size)})\n  sha256 {got.sha256}")
        paths.append(got.path)
    if command.name in ("mast3r", "all"):
        _say(console, f"next: python -m weights_conversion convert {paths[0]} OUTPUT-DIR")
    return paths


def run(command: Command, console: rich.console.Console | None = None) -> int:
    """Run one command; bad input becomes one sentence on stderr and exit status 2."""
    console = console or rich.console.Console()
    try:
        if isinstance(command, Convert):
            convert(command, console)
        elif isinstance(command, Inspect):
            inspect(command, console)
        else:
            download(command, console)
    except (ArchiveError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
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
