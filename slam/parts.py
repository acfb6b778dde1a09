"""Some of the frames of a reconstruction, as a reconstruction."""

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np

from slam.io.frames import SourceError
from slam.named_arrays import flatten, unflatten
from slam.state import StepOutput

if TYPE_CHECKING:
    from slam.reconstruction import Reconstruction


def part_of(result: "Reconstruction", first: int, last: int) -> "Reconstruction":
    """See ``Reconstruction.part``."""
    numbers = result.frame_numbers
    chosen = (first <= numbers) & (numbers <= last)
    if not chosen.any():
        raise SourceError(
            f"{result.name}: no frame has a number from {first} to {last}; there are those from "
            f"{numbers[0]} to {numbers[-1]}"
        )
    made_of = np.asarray(result.keyframes.frame_index)
    kept = (first <= made_of) & (made_of <= last)
    kept[np.asarray(result.frames.keyframe)[chosen & result.tracked]] = True
    slots = np.where(kept, np.cumsum(kept) - 1, 0)
    frames = {name: x[chosen] for name, x in flatten("frames", result.frames).items()}
    frames["frames.is_retrieved"] &= kept[frames["frames.retrieved"]]
    for name in ("frames.keyframe", "frames.retrieved"):
        frames[name] = slots[frames[name]].astype(np.int32)
    links, seen = result.links, result.observations
    seen = seen[kept[seen[:, 1]]]
    reference = result.reference_T_WC
    return dataclasses.replace(
        result,
        timestamps=result.timestamps[chosen],
        frames=unflatten("frames", StepOutput, frames),
        keyframes=jax.tree.map(
            lambda x: x[kept] if np.ndim(x) else np.int32(kept.sum()), result.keyframes
        ),
        images=result.images[kept],
        reference_T_WC=None if reference is None else reference[chosen],
        panels=tuple(panel for panel in result.panels if first <= panel.frame_index <= last),
        links=slots[links[kept[links].all(axis=1)]].astype(np.int32),
        observations=np.column_stack([seen[:, 0], slots[seen[:, 1]], seen[:, 2]]).astype(np.int32),
        system=None,
    )
