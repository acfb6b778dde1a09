"""Small made-up reconstructions in several pieces, whose every pose and point is known.

The camera goes round a circle. Each piece sees it in a world of its own: turned, moved and scaled.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from ops import FusedPointmap, Sim3, SolverStatus
from slam.config import SlamConfig
from slam.reconstruction import Reconstruction
from slam.state import Keyframes, Mode, StepOutput

HEIGHT, WIDTH, CANDIDATES = 4, 6, 2
WORLDS = (
    (0.5, Rotation.from_rotvec([0.3, -1.2, 0.4]), np.array([1.0, -2.0, 0.5])),
    (2.0, Rotation.from_rotvec([2.0, 0.3, -0.1]), np.array([-7.0, 3.0, 4.0])),
    (1.0, Rotation.from_rotvec([-0.2, 0.1, 1.5]), np.array([0.0, 30.0, 0.0])),
)
"""Scale, rotation and translation from the true world into that of each piece."""

TWO_PIECES = "KtKtt..RtK..StKt"
"""Of each frame: (K)eyframe, (t)racked, lost (.), (R)elocalised, (S)tart of a piece."""
LINKS = ((0, 1), (0, 2), (2, 3), (1, 3), (4, 5))
"""Of those frames: the second and the fourth are loop links."""


def truth(count: int) -> np.ndarray:
    """True poses [count, 4, 4], once round a circle of 2 m; the camera looks along it."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    T_WC = np.tile(np.eye(4), (count, 1, 1))
    T_WC[:, :3, :3] = Rotation.from_euler("y", -angle[:, None]).as_matrix()
    T_WC[:, :3, 3] = np.stack([2 * np.cos(angle), 0.1 * np.sin(2 * angle), 2 * np.sin(angle)], 1)
    return T_WC


def in_world(piece: int, T_WC: np.ndarray) -> np.ndarray:
    """The same rigid poses in the world of a piece."""
    scale, rotation, translation = WORLDS[piece]
    moved = T_WC.copy()
    moved[:, :3, :3] = rotation.as_matrix() @ T_WC[:, :3, :3]
    moved[:, :3, 3] = scale * rotation.apply(T_WC[:, :3, 3]) + translation
    return moved


def points_C(slot: int) -> np.ndarray:
    """Points of a keyframe in its camera, float64 [HW, 3]."""
    return np.random.default_rng(slot).uniform(-1, 1, (HEIGHT * WIDTH, 3))


def confidence() -> jax.Array:
    """Average confidence of each point of a keyframe, float32 [HW]: 1, 1.25, 1.5, ..."""
    return 1 + jnp.arange(HEIGHT * WIDTH, dtype=jnp.float32) / 4


def made_up(
    frames: str = TWO_PIECES,
    links: tuple[tuple[int, int], ...] = LINKS,
    failed: tuple[int, ...] = (),
    with_truth: bool = True,
) -> Reconstruction:
    """A reconstruction to order.

    Args:
        frames: a letter for each, see ``TWO_PIECES``; pieces get the numbers 0, 3, 6, as if others
            had been joined to them.
        links: pairs of slots.
        failed: frames whose optimisation of all keyframes failed.
        with_truth: whether the ground truth is known.
    """
    T_WC = truth(len(frames))
    is_keyframe = np.array([letter in "KRS" for letter in frames])
    piece = np.cumsum([letter == "S" for letter in frames])
    slot_of = np.maximum(np.cumsum(is_keyframe) - 1, 0)
    of_slot = np.flatnonzero(is_keyframe)
    outputs = []
    for i, letter in enumerate(frames):
        slot = slot_of[i]
        T_kf = np.linalg.inv(T_WC[of_slot[slot]]) @ T_WC[i] if letter != "." else np.eye(4)
        added = sum(slot in link for link in links) if is_keyframe[i] else 0
        iterations = 4 if added else 0
        status = SolverStatus.NOT_POSITIVE_DEFINITE if i in failed else SolverStatus.CONVERGED_STEP
        unplaced = Mode.LOST if "K" in frames[:i] else Mode.STARTING
        outputs.append(
            StepOutput(
                frame_index=jnp.int32(i),
                mode=jnp.int32(unplaced if letter == "." else Mode.TRACKING),
                keyframe=jnp.int32(slot),
                T_kf=similarities(T_kf[None], 1.0)[0],
                is_keyframe=jnp.asarray(is_keyframe[i]),
                relocalized=jnp.asarray(letter == "R"),
                submap=jnp.int32(piece[i]),
                match_fraction=jnp.float32(0.5),
                unique_fraction=jnp.float32(0.5),
                iterations=jnp.int32(3),
                cost=jnp.float32(1.0),
                status=jnp.int32(SolverStatus.CONVERGED_COST),
                retrieved=jnp.zeros(CANDIDATES, jnp.int32),
                is_retrieved=jnp.arange(CANDIDATES) < (1 if letter == "R" else 0),
                new_links=jnp.int32(added),
                graph_iterations=jnp.int32(iterations),
                graph_cost=jnp.float32(0.1),
                graph_floating=jnp.int32(0),
                graph_status=jnp.int32(status if added else SolverStatus.MAX_ITERATIONS),
                num_keyframes=jnp.int32(is_keyframe[: i + 1].sum()),
                full=jnp.asarray(False),
                graph_full=jnp.asarray(False),
            )
        )
    size, slots = (
        len(of_slot),
        np.append(of_slot, 0),
    )  # a spare slot, so that none is no special case
    pointmaps = [
        FusedPointmap(
            points=jnp.asarray(points_C(slot), jnp.float32),
            confidence=2.0 * confidence(),  # of two predictions
            count=jnp.int32(2),
            updates=jnp.int32(2),
            score=jnp.float32(1),
        )
        for slot in range(size + 1)
    ]
    rigid = np.concatenate([in_world(int(piece[i]), T_WC[i : i + 1]) for i in slots])
    shades = 10 * np.arange(size + 1)[:, None, None, None]
    keyframes = Keyframes(
        size=jnp.int32(size),
        frame_index=jnp.asarray(slots, jnp.int32),
        T_WC=similarities(rigid, np.array([WORLDS[piece[i]][0] for i in slots])),
        submap=jnp.asarray(3 * piece[slots], jnp.int32),
        pointmap=jax.tree.map(lambda *x: jnp.stack(x), *pointmaps),
        encoding=None,
    )
    return Reconstruction(
        name="pieces",
        config=SlamConfig(size=16),
        timestamps=0.1 * np.arange(len(frames)),
        frames=jax.tree.map(lambda *x: np.stack(x), *outputs),
        keyframes=jax.tree.map(lambda x: x[:size] if x.ndim else x, jax.device_get(keyframes)),
        reference_T_WC=T_WC if with_truth else None,
        timing=timing(len(frames)),
        links=np.array(links, np.int32).reshape(-1, 2),
        images=np.broadcast_to(shades[:size], (size, HEIGHT, WIDTH, 3)).astype(np.uint8),
    )


def similarities(T: np.ndarray, scale: np.ndarray | float) -> Sim3:
    """Sim(3) [n] of rigid matrices and scales."""
    wxyz = Rotation.from_matrix(T[:, :3, :3]).as_quat(scalar_first=True)
    columns = [wxyz, T[:, :3, 3], np.broadcast_to(scale, len(T))[:, None]]
    return Sim3(jnp.asarray(np.concatenate(columns, axis=1), jnp.float32))


def timing(frames: int) -> dict:
    """Plausible times of every stage, in the order in which they are first called."""
    calls = dict.fromkeys(("source", "look up", "encode", "decode", "match", "solve"), frames)
    calls |= {"assess": frames, "propose": 7, "verify": 7, "commit": frames, "frame": frames}
    calls |= {"optimize": 5, "adopt": 1}
    stages = {
        name: {
            "first_s": 1.25,
            "median_s": 0.012 if count > 1 else float("nan"),
            "p99_s": 1.234 if count > 1 else float("nan"),
            "later_sum_s": 0.012 * (count - 1),
            "calls": count,
        }
        for name, count in calls.items()
    }
    return {
        "stages": stages,
        "total_s": 123.4,
        "first_frame_s": 9.9,
        "fps_after_first_frame": 15.2,
        "growth": [],
    }
