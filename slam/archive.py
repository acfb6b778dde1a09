"""A reconstruction in one ``.npz`` file, and back.

The prior's encodings are not kept: they belong to one prior, and only a running system needs them.
"""

import dataclasses
import json
import os
import pathlib
import zipfile
import zlib

import numpy as np

from slam.config import SlamConfig, config_from_dict
from slam.io.atomic import atomic_write
from slam.io.frames import SourceError
from slam.named_arrays import flatten, unflatten
from slam.reconstruction import Reconstruction
from slam.state import Keyframes, StepOutput

FORMAT = 5
"""Version of the layout; a reader refuses others."""

_OF_LINKS = ("links", "observations")
"""Fields of a reconstruction that hold arrays about links."""

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
    arrays |= flatten("frames", result.frames)
    keyframes = flatten("keyframes", result.keyframes)
    arrays |= {k: v for k, v in keyframes.items() if not k.startswith("keyframes.encoding")}
    about = {
        "format": FORMAT,
        "name": result.name,
        "config": dataclasses.asdict(result.config),
        "timing": result.timing,
        "notes": result.notes,
        "broken_off": result.broken_off,
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
            frames=unflatten("frames", StepOutput, arrays),
            keyframes=unflatten("keyframes", Keyframes, arrays),
            reference_T_WC=arrays.get("reference_T_WC"),
            K=arrays.get("K"),
            timing=about["timing"],
            notes=tuple(about["notes"]),
            broken_off=about["broken_off"],
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
