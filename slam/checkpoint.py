"""A run in the middle, or at its end, as arrays: what another process can go on from.

Unlike a reconstruction, which is for looking at, it has all of the system's state: the prior's
encodings, the graph with every match, the database of places. It belongs to one prior.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mast3r_jax import CheckpointError
from slam.collected import Collected
from slam.config import SlamConfig, config_from_dict
from slam.io.atomic import atomic_write
from slam.io.frames import SourceError
from slam.keyframes import grow
from slam.named_arrays import flatten, unflatten
from slam.state import Mode, SlamState, StepOutput, identity_match
from slam.types import TwoViewPrior

if TYPE_CHECKING:
    from slam.io.checkpoints import Checkpoints

FORMAT = 1
"""Version of the layout; a reader refuses others."""
CHECKPOINT, MAP = "checkpoint", "map"
"""Folders within the results of a run: where an unfinished one goes on, and the finished map."""
ABOUT = "about.json"
"""What the first of them has beside the checkpoints."""
_SLOTS = ("keyframes", "graph", "database")
"""Fields of the state whose arrays are buffers of slots; they are saved without the empty ones."""


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """Where and how often a run saves what it could go on from."""

    folder: str | os.PathLike[str]
    """The folder ``checkpoint`` in it is made and written to."""
    seconds: float = 60.0
    """At least so much time lies between two, and twenty times what the last one took; 0: after
    every frame."""
    resume: bool = False
    """Go on from the newest one in the folder, in place of starting anew."""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Kept beside them, as ``about.json``."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A run as named arrays, and what is to be known before they can be used."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    place: str = ""
    """Where it was read from, for messages."""

    @property
    def num_frames(self) -> int:
        """Frames taken in."""
        return int(self.about["frames"])

    @property
    def config(self) -> SlamConfig:
        """Configuration of the run."""
        return config_from_dict(SlamConfig, self.about["config"])

    def write(self, folder: pathlib.Path) -> None:
        """Write it as the newest checkpoint of ``folder``, and wait until it is complete."""
        with contextlib.closing(opened(folder)) as checkpoints:
            checkpoints.save(self.num_frames, self.with_about())
            checkpoints.finish()

    def with_about(self) -> dict[str, np.ndarray]:
        """All of it as arrays that can be stored: those without any element are told of."""
        empty = {
            name: [str(x.dtype), list(x.shape)] for name, x in self.arrays.items() if not x.size
        }
        text = json.dumps({**self.about, "empty": empty}).encode()
        full = {name: x for name, x in self.arrays.items() if x.size}
        return {**full, "about": np.frombuffer(text, np.uint8)}

    def collected(self) -> Collected:
        """What the run had brought."""
        frames, count = unflatten("frames", StepOutput, self.arrays), self.num_frames
        return Collected(
            outputs=[jax.tree.map(lambda x, i=i: x[i], frames) for i in range(count)],
            timestamps=self.arrays["timestamps"].tolist(),
            references=list(self.arrays["references"]),
            images=self.images(),
            notes=list(self.about["notes"]),
            growth=list(self.about["growth"]),
        )

    def images(self) -> list[np.ndarray]:
        """uint8 [H, W, 3] of every keyframe."""
        return list(self.arrays["images"])

    def state(self, prior: TwoViewPrior, blank: SlamState) -> SlamState:
        """The state of the system, in buffers of the size they had, or ``blank`` has.

        Args:
            prior: the one that will look at the next frames.
            blank: an empty state of the kind wanted (``init_state``, or its ``jax.eval_shape``).

        Raises:
            SourceError: it was made with another prior, or for images of another size.
        """
        height, width = self.about["image_shape"]
        if tuple(blank.image_shape) != (height, width):
            raise SourceError(
                f"{self.place}: its images are {width}x{height}, these are "
                f"{blank.image_shape[1]}x{blank.image_shape[0]} at the working size; choose a "
                "source of the same shape, and the same --config.size"
            )
        if self.about["prior"] != fingerprint(prior):
            raise SourceError(
                f"{self.place}: was made with another prior, whose encodings this one cannot read; "
                "pass the same --prior"
            )
        if (blank.K is None) != ("state.K" not in self.arrays):
            made, now = ("with", "without") if blank.K is None else ("without", "with")
            raise SourceError(f"{self.place}: was made {made} intrinsics, not {now} them")
        host = _like(blank, "state", self.arrays, self.place)
        keyframes = self.about["capacity"], blank.keyframes.capacity, host.keyframes.capacity
        factors = self.about["edge_capacity"], blank.graph.capacity
        return grow(jax.tree.map(jnp.array, host), max(keyframes), max(factors))

    def map_for(self, prior: TwoViewPrior, blank: SlamState) -> SlamState:
        """The state in which a camera that has never been here looks for its place in the map.

        Arguments and errors as of ``state``. Keyframes have negative frame numbers: -1 was the last
        frame of the run that made the map.
        """
        state = self.state(prior, blank)
        if state.K is not None and not np.allclose(state.K, np.asarray(blank.K), rtol=1e-3):
            raise SourceError(
                f"{self.place}: was made with other intrinsics; a map has one camera only"
            )
        keyframes = state.keyframes
        return blank.replace(
            mode=jnp.int32(Mode.LOST if int(keyframes.size) else Mode.STARTING),
            keyframes=keyframes.replace(frame_index=keyframes.frame_index - self.num_frames),
            graph=state.graph,
            database=state.database,
            K=state.K,
            match_init=identity_match(state.image_shape),
        )


def on_host(state: SlamState) -> SlamState:
    """A copy of the state on the host, its buffers without the slots that are empty.

    At least one slot is left.
    """
    in_use = {"keyframes": int(state.keyframes.size), "graph": int(state.graph.size)}
    in_use["database"] = in_use["keyframes"]

    def copied(path: Any, leaf: Any) -> np.ndarray:
        field = path[0].name
        # Copied: on a CPU the host looks at the device's own memory, which the next step reuses.
        return np.array(leaf[: max(1, in_use[field])] if field in _SLOTS and leaf.ndim else leaf)

    return jax.tree_util.tree_map_with_path(copied, state)


def pack(
    state: SlamState,
    host: SlamState,
    prior: TwoViewPrior,
    config: SlamConfig,
    name: str,
    collected: Collected,
) -> Saved:
    """Everything as arrays; ``host`` is ``on_host(state)``."""
    arrays = flatten("state", host)
    arrays |= flatten("frames", collected.frames())
    arrays["timestamps"] = np.asarray(collected.timestamps, np.float64)
    arrays["references"] = np.stack(collected.references)
    arrays["images"] = collected.images_of(state.image_shape)
    about = {
        "format": FORMAT,
        "name": name,
        "frames": len(collected.outputs),
        "config": dataclasses.asdict(config),
        "image_shape": list(state.image_shape),
        "capacity": state.keyframes.capacity,
        "edge_capacity": state.graph.capacity,
        "prior": fingerprint(prior),
        "notes": collected.notes,
        "growth": collected.growth,
    }
    return Saved(about, arrays)


def read(folder: str | os.PathLike[str], part: str = CHECKPOINT) -> Saved:
    """The newest checkpoint of a run, or its finished map.

    Args:
        folder: the results of the run.
        part: ``CHECKPOINT`` or ``MAP``.

    Raises:
        SourceError: there is none, it is damaged, or of another version.
    """
    folder = pathlib.Path(folder)
    where = folder / part
    if not where.is_dir():
        raise SourceError(f"{folder}: {_absent(folder, part)}")
    try:
        with contextlib.closing(opened(where)) as checkpoints:
            newest = checkpoints.latest()
            if newest is None:
                raise SourceError(f"{where}: holds no complete checkpoint; run the source again")
            arrays = checkpoints.load(newest)
            about = json.loads(arrays.pop("about").tobytes())
        for name, (dtype, shape) in about.pop("empty").items():
            arrays[name] = np.zeros(shape, dtype)
    except (CheckpointError, KeyError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{where}: is damaged ({error}); run the source again") from error
    if about["format"] != FORMAT:
        raise SourceError(
            f"{where}: was written by another version, in format {about['format']} instead of "
            f"{FORMAT}; run the source again"
        )
    return Saved(about, arrays, str(where))


def start(wanted: Checkpointing) -> "Checkpoints":
    """Where a run writes its checkpoints. Those of another run are removed, unless it goes on."""
    folder = pathlib.Path(wanted.folder) / CHECKPOINT
    if not wanted.resume:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_write(folder / ABOUT) as file:
            file.write(json.dumps(dict(wanted.about)).encode())
    return opened(folder)


def opened(folder: pathlib.Path) -> "Checkpoints":
    """The checkpoints in a folder, of which the newest is kept."""
    # Its library takes longer to import than all the rest of ours.
    from slam.io.checkpoints import Checkpoints

    return Checkpoints(folder, keep=1)


def fingerprint(prior: TwoViewPrior) -> str:
    """A checksum of a prior's structure and of a sample of each of its arrays."""
    leaves, structure = jax.tree.flatten(prior)
    digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", str(structure)).encode())
    for leaf in leaves:
        flat = jnp.ravel(jnp.asarray(leaf))
        sample = np.asarray(flat[:: max(1, flat.size // 64)])
        digest.update(f"{sample.dtype} {jnp.shape(leaf)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _absent(folder: pathlib.Path, part: str) -> str:
    if not folder.is_dir():
        return "no such folder; pass the folder that a run has written"
    if part == MAP and (folder / CHECKPOINT).is_dir():
        return "holds an unfinished run; finish it first with `mast3r-slam run --resume`"
    if part == CHECKPOINT and (folder / "run.json").is_file():
        return "this run has finished; there is nothing to go on with"
    if part == MAP and (folder / "run.json").is_file():
        return "this run did not keep its map; run its source again, without --no-map"
    return f"holds no {part} of a run; pass the folder that a run has written"


def _like(blank: Any, prefix: str, arrays: Mapping[str, np.ndarray], place: str) -> Any:
    """The arrays in the structure of ``blank``, whose slots may be more or fewer."""
    paths, structure = jax.tree_util.tree_flatten_with_path(blank)
    names = [prefix + jax.tree_util.keystr(path) for path, _ in paths]
    stored = {name for name in arrays if name.startswith(f"{prefix}.")}
    fits = stored == set(names) and all(
        arrays[name].dtype == leaf.dtype
        and arrays[name].shape[1:] == leaf.shape[1:]
        and (path[0].name in _SLOTS or arrays[name].shape == leaf.shape)
        for name, (path, leaf) in zip(names, paths, strict=True)
    )
    if not fits:
        raise SourceError(
            f"{place}: its arrays are not those of this configuration; keep graph.spread, "
            "retrieval and --config.size as they were"
        )
    return jax.tree.unflatten(structure, [arrays[name] for name in names])
