"""A training state in files small enough to be carried anywhere.

A folder holds ``manifest.json`` and ``part-0001.safetensors``, ... Arrays are cut where a file is
full. The manifest tells what pieces each file holds and the file's SHA-256; its own checksum is
that of everything else it says.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from mast3r_jax import CheckpointError
from mast3r_jax.checkpoint import replacing

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the layout; a reader refuses others."""
_HEADER = 256
"""Bytes kept for a piece in the header of its file, its name not counted."""


def export_parts(
    folder: pathlib.Path,
    arrays: dict[str, np.ndarray],
    about: dict[str, Any],
    limit: int = 16_000_000,
) -> None:
    """Writes arrays into files of at most ``limit`` bytes each, replacing an earlier export.

    The folder appears whole or not at all. ``about`` is anything that JSON can hold; it is part of
    the manifest. ``limit`` must leave room for a piece's name.

    Raises:
        CheckpointError: ``folder`` holds anything but an export.
    """
    _check_target(folder)
    with replacing(folder) as draft:
        files = []
        for number, pieces in enumerate(_filled(arrays, limit), start=1):
            name = f"part-{number:04d}.safetensors"
            content = safetensors.numpy.save(dict(pieces))
            assert len(content) <= limit, (name, len(content))
            (draft / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            held = [piece for piece, _ in pieces]
            files.append({"name": name, "sha256": digest, "pieces": held})
        manifest = {
            "format": FORMAT,
            "about": about,
            "arrays": {
                name: {"dtype": str(value.dtype), "shape": list(value.shape)}
                for name, value in arrays.items()
            },
            "files": files,
        }
        manifest["sha256"] = _digest(manifest)
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def import_parts(folder: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an export, and what it tells about itself.

    Raises:
        CheckpointError: the folder is no export, a part is missing or damaged, or the format is
            another version's.
    """
    manifest = read_manifest(folder)
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in manifest["arrays"]}
    for entry in manifest["files"]:
        path = folder / entry["name"]
        if not path.is_file():
            raise CheckpointError(
                f"{path}: is missing; copy all {len(manifest['files'])} parts together"
            )
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{path}: {_DAMAGED}")
        held = safetensors.numpy.load(content)
        for name in entry["pieces"]:
            pieces[name].append(held[name])
    arrays = {}
    for name, spec in manifest["arrays"].items():
        whole = np.concatenate(pieces[name]) if len(pieces[name]) > 1 else pieces[name][0]
        arrays[name] = whole.reshape(spec["shape"])
    return arrays, manifest["about"]


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of an export, checked against its own checksum.

    Raises:
        CheckpointError: as ``import_parts``.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no exported training state, it has no {MANIFEST}; pass the folder `parts` "
            "that `mast3r-slam train` writes"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        whole = manifest.pop("sha256") == _digest(manifest)
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{path}: {_DAMAGED}")
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: has format {manifest['format']} instead of {FORMAT}; use the version of this "
            "package that wrote it"
        )
    return manifest


_DAMAGED = "is damaged, its checksum is another one; copy it again"


def _filled(arrays: dict[str, np.ndarray], limit: int) -> list[list[tuple[str, np.ndarray]]]:
    """Pieces of all arrays in order, by name, file by file."""
    files: list[list[tuple[str, np.ndarray]]] = [[]]
    room = limit - _HEADER
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array).reshape(-1)
        header = _HEADER + len(name.encode())
        start, first = 0, True
        while first or start < flat.size:
            count = min(flat.size - start, max(0, room - header) // flat.itemsize)
            # An empty array needs a place too, and a scrap at the end of a file is not worth one.
            if count == 0 and flat.size and files[-1]:
                files.append([])
                room = limit - _HEADER
                continue
            files[-1].append((name, flat[start : start + count]))
            room -= header + count * flat.itemsize
            start, first = start + count, False
    return files


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _check_target(folder: pathlib.Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: exists and is no folder; choose another one")
    foreign = sorted(
        name
        for name in os.listdir(folder)
        if name != MANIFEST and not (name.startswith("part-") and name.endswith(".safetensors"))
    )
    if foreign:
        raise CheckpointError(f"{folder}: holds other files ({foreign[0]}); choose another folder")
