"""The keyframes of a reconstruction as pinhole cameras, as other programs want them."""

import dataclasses

import numpy as np

from slam.exports.focal import estimate_focal
from slam.io.frames import SourceError
from slam.reconstruction import Reconstruction, keyframe_name

_MOST_POINTS = 4096
"""Of each keyframe, for the focal length."""


@dataclasses.dataclass(frozen=True)
class Cameras:
    """Keyframes of one submap, in order of time."""

    K: np.ndarray
    """float64 [3, 3], pixels; the centre of the first pixel is at (0, 0)."""
    focal_source: str
    """Where the focal length is from, in words."""
    slots: np.ndarray
    """int [K], slots in the map."""
    T_WC: np.ndarray
    """float64 [K, 4, 4], camera to world, x right, y down, z forward."""
    points: np.ndarray
    """float32 [K, H*W, 3], what each pixel sees, in its camera and in units of the world."""
    confidence: np.ndarray
    """float32 [K, H*W], average confidence."""
    images: np.ndarray
    """uint8 [K, H, W, 3]."""
    names: tuple[str, ...]
    """File name of each image."""

    @property
    def lens(self) -> str:
        """The focal length, and where it is from, in words."""
        return f"focal length {self.K[0, 0]:.1f} px, {self.focal_source}"

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[1], self.images.shape[2]

    def world_points(self, camera: int) -> np.ndarray:
        """float64 [H*W, 3], what the pixels of a camera see, in the world."""
        T = self.T_WC[camera]
        return self.points[camera].astype(np.float64) @ T[:3, :3].T + T[:3, 3]

    def project(self, camera: np.ndarray, points_W: np.ndarray) -> np.ndarray:
        """Pixels [N, 2] at which cameras [N] see points [N, 3]; NaN behind them."""
        T = self.T_WC[camera]
        points_C = np.einsum("nji,nj->ni", T[:, :3, :3], points_W - T[:, :3, 3])
        seen = points_C[:, 2] > 0
        safe = np.where(seen, points_C[:, 2], 1.0)
        pixels = points_C[:, :2] / safe[:, None] * np.diag(self.K)[:2] + self.K[:2, 2]
        return np.where(seen[:, None], pixels, np.nan)


def cameras_of(
    result: Reconstruction, submap: int | None = None, *, only_to_look_at: bool = False
) -> Cameras:
    """The keyframes of one submap, by default the largest.

    Their common focal length is that of the run, or else estimated from all pointmaps, with the
    principal point in the middle of the image. If the points tell none, one as long as the image is
    wide is good enough for cameras that are ``only_to_look_at``.

    Raises:
        SourceError: there are no keyframes, or their points tell no focal length.
    """
    slots = result.slots_of(submap)
    if not len(slots):
        raise SourceError(f"{result.name}: the run made no keyframe; there is nothing to export")
    snapshot = result.snapshot(submap)
    views = [snapshot.changed[int(slot)] for slot in slots]
    poses = snapshot.keyframe_poses[slots].astype(np.float64)
    scale = poses[:, 7]
    points = np.stack([view.points for view in views]) * scale[:, None, None]
    confidence = np.stack([view.confidence for view in views])
    T_WC = np.tile(np.eye(4), (len(slots), 1, 1))
    T_WC[:, :3, :3], T_WC[:, :3, 3] = _rotations(poses[:, :4]), poses[:, 4:7]
    images = result.images[slots]
    K, focal_source = result.K, "that of the run"
    if K is None:
        try:
            focal = _estimated(points, confidence, images.shape[1:3])
            focal_source = "estimated from the pointmaps"
        except ValueError as error:
            if not only_to_look_at:
                raise SourceError(f"{result.name}: {error}") from None
            focal, focal_source = float(images.shape[2]), "assumed, for the pointmaps tell none"
        K = _centred(focal, images.shape[1:3])
    return Cameras(
        K=np.asarray(K, np.float64),
        focal_source=focal_source,
        slots=slots,
        T_WC=T_WC,
        points=points.astype(np.float32),
        confidence=confidence,
        images=images,
        names=tuple(
            f"{keyframe_name(view.frame_index, int(slot))}.png"
            for view, slot in zip(views, slots, strict=True)
        ),
    )


def _estimated(points: np.ndarray, confidence: np.ndarray, image_shape: tuple[int, ...]) -> float:
    """Focal length from the more confident half of each keyframe's points."""
    height, width = image_shape
    v, u = np.divmod(np.arange(height * width), width)
    pixels = np.stack([u, v], axis=1) - _centred(1.0, image_shape)[:2, 2]
    chosen = []
    for certain in confidence:
        best = np.argsort(-certain, kind="stable")[: len(certain) // 2]
        chosen.append(best[:: max(1, len(best) // _MOST_POINTS)])
    seen = np.concatenate([x[best] for x, best in zip(points, chosen, strict=True)])
    return estimate_focal(seen, np.concatenate([pixels[best] for best in chosen]))


def _centred(focal: float, image_shape: tuple[int, ...]) -> np.ndarray:
    """Intrinsics [3, 3] with the principal point in the middle of the image."""
    height, width = image_shape
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def _rotations(wxyz: np.ndarray) -> np.ndarray:
    """Rotation matrices [K, 3, 3] of unit quaternions."""
    w, u = wxyz[:, 0, None, None], wxyz[:, 1:]
    zero = np.zeros(len(u))
    cross = np.stack(
        [
            np.stack([zero, -u[:, 2], u[:, 1]], axis=1),
            np.stack([u[:, 2], zero, -u[:, 0]], axis=1),
            np.stack([-u[:, 1], u[:, 0], zero], axis=1),
        ],
        axis=1,
    )
    return np.eye(3) + 2 * (w * cross + cross @ cross)
