"""What a weights file holds, told on a terminal."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text

from weights_conversion.convert import ConversionError, heads_from_model_string, infer_config
from weights_conversion.download import human
from weights_conversion.inert_pickle import printable
from weights_conversion.retrieval import is_retrieval
from weights_conversion.tensors import load_archive, state_dict

OURS = "encoder.patch_embed.kernel"
"""The name of a tensor that only this project's own weights have."""


def plain(text: str) -> str:
    """``text`` without control characters: names in a file must not drive the terminal."""
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def say(console: rich.console.Console, text: str) -> None:
    """Print text as it is: paths and checksums whole, brackets no markup."""
    console.print(plain(text), highlight=False, markup=False, soft_wrap=True)


def heads_of(archive: Mapping[str, Any], enc: int | None, dec: int | None) -> dict[str, int]:
    """Numbers of attention heads: as given, else from the training arguments in the checkpoint."""
    arguments = archive.get("args")
    text = arguments.get("model") if isinstance(arguments, dict) else None
    told = heads_from_model_string(text[:4000]) if isinstance(text, str) else {}
    given = {"enc_heads": enc, "dec_heads": dec}
    return told | {side: count for side, count in given.items() if count is not None}


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


def inspect_file(path: pathlib.Path, console: rich.console.Console) -> None:
    """Print entries, tensors by part, and the configuration they imply; raises ``ArchiveError``."""
    archive = load_archive(path)
    size = path.stat().st_size
    say(console, f"{path} ({human(size)})")
    if not all(isinstance(value, np.ndarray) for value in archive.values()):
        entries = rich.table.Table("entry", "holds", box=rich.box.SIMPLE_HEAD)
        for key, value in archive.items():
            entries.add_row(rich.text.Text(printable(key, 24)), rich.text.Text(_describe(value)))
        console.print(entries)
    tensors = state_dict(archive, str(path))
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
    say(console, _network(archive, tensors))


def _network(archive: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    """The configuration that a state dict implies, or why there is none."""
    if is_retrieval(archive):
        kept = {name: archive["args"].get(name) for name in ("nfeat", "nclusters", "hdims")}
        fields = [f"  {name:<15} {printable(value)}" for name, value in kept.items()]
        return "\n".join(["retrieval head (its codebook is a file of its own)", *fields])
    if OURS in tensors:
        return "weights of this project: load their folder with mast3r_jax.load"
    try:
        config = infer_config(tensors, **heads_of(archive, None, None))
    except ConversionError as error:
        first, *problems = str(error).splitlines()
        shown = [first, *problems[:3]]
        shown += [f"  ... and {len(problems) - 3} more"] if len(problems) > 3 else []
        return "not a MASt3R network: " + "\n".join(shown)
    fields = [f"  {name:<15} {value}" for name, value in dataclasses.asdict(config).items()]
    return "\n".join(["network (MASt3RConfig)", *fields])
