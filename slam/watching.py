"""Takes the snapshots of a running system that its observer asked for."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from slam.collected import Collected
from slam.composition import camera_points
from slam.reconstruction import is_loop
from slam.slots import read_slot
from slam.snapshot import KeyframeView, Observer, Snapshot, compose_poses
from slam.state import Mode, SlamState, StepOutput
from slam.stepper import DenseResult


class Watch:
    """An observer, and what it has been shown.

    Everything that a snapshot needs is copied on the device at once, for the next step consumes the
    state; the way to the host is left to whoever opens the snapshot.
    """

    def __init__(self, observer: Observer, name: str, total: int | None) -> None:
        self.observer, self.name, self.total = observer, name, total
        self._seen = 0
        """Frames whose reports are in ``_placed``."""
        self._placed: list[tuple[np.ndarray, np.ndarray]] = []
        """Of each placed frame so far, slot of its keyframe and pose in its camera."""
        self._keyframes_shown = 0

    def wanted(self) -> bool:
        """Whether the observer wants a snapshot; waits while it is paused."""
        return self.observer.ready()

    def take(
        self, state: SlamState, collected: Collected, image: np.ndarray, dense: DenseResult
    ) -> None:
        """Have the observer take a snapshot.

        Args:
            state: after the last frame.
            collected: what the run has brought so far.
            image: uint8 [H, W, 3], the last frame.
            dense: what the prior said of it.
        """
        images = collected.images
        # The last keyframe shown has been fused into since.
        first = max(self._keyframes_shown - 1, 0)
        views = {
            slot: (images[slot], _keyframe(state, jnp.int32(slot)))
            for slot in range(first, len(images))
        }
        self._keyframes_shown = len(images)
        seen = dense.views.frame
        captured = _poses(state), seen.points[..., 2], seen.usable
        self.observer.take(self._snapshot(captured, list(collected.outputs), image, views))

    def _snapshot(
        self,
        captured: tuple,
        outputs: list[StepOutput],
        image: np.ndarray,
        views: dict[int, tuple[np.ndarray, tuple]],
    ) -> Callable[[], Snapshot]:
        number = self._keyframes_shown

        def fetch() -> Snapshot:
            (poses, submaps, i, j, size), depth, usable = jax.device_get(captured)
            links = np.stack([i, j], axis=1)[: int(size) : 2]
            self._take_in(outputs)
            slots = np.array([slot for slot, _ in self._placed], np.int32)
            relative = np.array([pose for _, pose in self._placed], np.float32).reshape(-1, 8)
            current = int(submaps[slots[-1]]) if len(slots) else 0
            here = submaps[slots] == current
            path = compose_poses(poses[slots[here]], relative[here])
            last = outputs[-1]
            return Snapshot(
                name=self.name,
                num_frames=len(outputs),
                total=self.total,
                mode=Mode(int(last.mode)),
                match_fraction=float(last.match_fraction),
                image=image,
                depth=np.where(usable, depth, np.nan),
                pose=path[-1] if int(last.mode) == Mode.TRACKING else None,
                keyframe_poses=poses[:number],
                submaps=submaps[:number],
                submap=current,
                links=links,
                is_loop_link=is_loop(links),
                positions=path[:, 4:7],
                changed={
                    slot: KeyframeView(int(index), shown, points, confidence)
                    for slot, (shown, on_device) in views.items()
                    for index, points, confidence in [jax.device_get(on_device)]
                },
            )

        return fetch

    def _take_in(self, outputs: list[StepOutput]) -> None:
        for output in outputs[self._seen :]:
            if int(output.mode) == Mode.TRACKING:
                relative = np.asarray(output.T_kf.wxyz_xyz_scale)
                self._placed.append((np.asarray(output.keyframe), relative))
        self._seen = len(outputs)


@jax.jit
def _poses(state: SlamState) -> tuple[Array, ...]:
    """Copies: what comes out of ``jit`` unchanged may be the state's own buffer, which is given
    away at the next step."""
    keyframes, graph = state.keyframes, state.graph
    parts = (keyframes.T_WC.wxyz_xyz_scale, keyframes.submap, graph.i, graph.j, graph.size)
    return tuple(jnp.copy(x) for x in parts)


@jax.jit
def _keyframe(state: SlamState, slot: Int[Array, ""]) -> tuple[Array, Array, Array]:
    """Number of the frame it was, points in its camera, and their confidence."""
    keyframes = state.keyframes
    index, pointmap = read_slot((keyframes.frame_index, keyframes.pointmap), slot)
    points, confidence = camera_points(pointmap, state.K, state.image_shape)
    return index, points, confidence
