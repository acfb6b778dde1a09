"""A reconstruction in one ``.npz`` file, and back.

The prior's encodings are not kept: they belong to one prior, and only a running system needs them.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

from ops import FusedPointmap, Sim3
from slam.config import SlamConfig, config_from_dict
from slam.io.atomic import atomic_write
from slam.io.frames import SourceError
from slam.reconstruction import Reconstruction
from slam.state import Keyframes, StepOutput

FORMAT = 4
"""Version of the layout; a reader refuses others."""

_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError),
    *(KeyError, TypeError, AttributeError, ValueError),
)
"""What zipfile, zlib and numpy raise at bytes that are not what they seem, and what follows from an
archive of other contents."""


def save_archive(result: Reconstruction, path: str | os.PathLike[str]) -> None:
    """Write everything of a reconstruction except its panels; atomic."""
    arrays: dict[str, np.ndarray] = {"timestamps": result.timestamps, "images": result.images}
    arrays |= {name: getattr(result, name) for name in _OF_LINKS}
    if result.reference_T_WC is not None:
        arrays["reference_T_WC"] = result.reference_T_WC
    if result.K is not None:
        arrays["K"] = result.K
    arrays |= _flatten("frames", result.frames)
    keyframes = _flatten("keyframes", result.keyframes)
    arrays |= {k: v for k, v in keyframes.items() if not k.startswith("keyframes.encoding")}
    about = {
        "format": FORMAT,
        "name": result.name,
        "config": dataclasses.asdict(result.config),
        "timing": result.timing,
        "notes": result.notes,
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_archive(path: str | os.PathLike[str]) -> Reconstruction:
    """Read what ``save_archive`` wrote.

    Raises:
        SourceError: there is no such file, or it is not a reconstruction of this format.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise SourceError(f"{path}: no such file; pass the folder that a run has written")
    try:
        # Opened here: numpy leaves the file open when it turns out to be no archive.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        about = json.loads(arrays.pop("about").tobytes())
        if about["format"] != FORMAT:
            raise SourceError(_other_format(path, about["format"]))
        return Reconstruction(
            name=about["name"],
            config=config_from_dict(SlamConfig, about["config"]),
            timestamps=arrays["timestamps"],
            frames=_unflatten("frames", StepOutput, arrays),
            keyframes=_unflatten("keyframes", Keyframes, arrays),
            reference_T_WC=arrays.get("reference_T_WC"),
            K=arrays.get("K"),
            timing=about["timing"],
            notes=tuple(about["notes"]),
            images=arrays["images"],
            **{name: arrays[name] for name in _OF_LINKS},
        )
    except SourceError:
        raise
    except _DAMAGE as error:
        raise SourceError(
            f"{path}: is damaged or not a reconstruction ({error}); run the source again"
        ) from error


def _other_format(path: pathlib.Path, number: int) -> str:
    older = number < FORMAT
    way_out = "run the source again" if older else "update mast3r-slam-jax to read it"
    return (
        f"{path}: was written by {'an older' if older else 'a newer'} version, in format {number} "
        f"instead of {FORMAT}; {way_out}"
    )


_OF_LINKS = ("links", "matches", "match_pixels")
"""Fields of a reconstruction that hold arrays about links."""
_NESTED = {"T_kf": Sim3, "T_WC": Sim3, "pointmap": FusedPointmap}


def _flatten(prefix: str, value: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(value)
    return {prefix + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _unflatten(prefix: str, cls: type, arrays: dict[str, np.ndarray]) -> Any:
    fields = {}
    for field in dataclasses.fields(cls):
        name = f"{prefix}.{field.name}"
        if field.name == "encoding":
            fields[field.name] = None
        elif field.name in _NESTED:
            fields[field.name] = _unflatten(name, _NESTED[field.name], arrays)
        else:
            fields[field.name] = arrays[name]
    # Host arrays, batched over frames or slots: rebuilt as JAX rebuilds records, without __init__.
    names = [field.name for field in dataclasses.fields(cls)]
    _, structure = jax.tree.flatten(_placeholder(cls, names))
    return jax.tree.unflatten(structure, [fields[name] for name in names])


def _placeholder(cls: type, names: list[str]) -> Any:
    value = object.__new__(cls)
    for name in names:
        object.__setattr__(value, name, 0)
    return value
