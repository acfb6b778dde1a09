"""From images of a real camera to those of a pinhole camera."""

import dataclasses

import cv2
import numpy as np

SAME_PIXEL = 1.0 / 64.0
"""Half of the step by which OpenCV interpolates: a map closer than this to the identity is it."""


@dataclasses.dataclass(frozen=True)
class Rectification:
    """Where each pixel of a pinhole camera's image lies in the image of the real camera."""

    K: np.ndarray
    """Intrinsics of the pinhole camera, float64 [3, 3]."""
    u: np.ndarray
    """Column in the real image, float32 [H, W]."""
    v: np.ndarray
    """Row in the real image, float32 [H, W]."""
    is_identity: bool
    """The real camera is a pinhole camera, with these intrinsics."""

    def image(self, rgb: np.ndarray) -> np.ndarray:
        """The image ``uint8[H, W, 3]`` of the pinhole camera, interpolated linearly."""
        return self._sample(rgb, cv2.INTER_LINEAR)

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """The depth ``float32[H, W]`` along z of the pinhole camera, of the nearest pixel."""
        return self._sample(depth, cv2.INTER_NEAREST)

    def _sample(self, values: np.ndarray, method: int) -> np.ndarray:
        if values.shape[:2] != self.u.shape:
            have, want = values.shape[1::-1], self.u.shape[::-1]
            raise ValueError(f"{have[0]}x{have[1]} values for a camera of {want[0]}x{want[1]}")
        return values if self.is_identity else cv2.remap(values, self.u, self.v, method)


def plan_rectification(
    K: np.ndarray,
    distortion: np.ndarray | None,
    size: tuple[int, int],
    *,
    center_principal_point: bool = True,
) -> Rectification:
    """The pinhole camera that sees as much as it can within the real image, without a border.

    ``K`` are the intrinsics float64 [3, 3] and ``distortion`` OpenCV's coefficients of images of
    ``size`` (width, height); both images have that size. With ``center_principal_point`` the
    optical axis meets the image's centre, as the network is used to. As in the original: OpenCV's
    ``getOptimalNewCameraMatrix`` with alpha 0. Raises ``ValueError`` for a distortion under which
    points of the image lie behind each other.
    """
    coefficients = np.zeros(4) if distortion is None else np.asarray(distortion, np.float64)
    pinhole, _ = cv2.getOptimalNewCameraMatrix(
        K, coefficients, size, 0, size, centerPrincipalPoint=center_principal_point
    )
    pinhole = np.asarray(pinhole, np.float64)
    u, v = cv2.initUndistortRectifyMap(K, coefficients, np.eye(3), pinhole, size, cv2.CV_32FC1)
    ordered = (np.diff(u, axis=1) > 0).all() and (np.diff(v, axis=0) > 0).all()
    if not (ordered and np.isfinite(pinhole).all() and pinhole[0, 0] > 0 and pinhole[1, 1] > 0):
        raise ValueError(
            f"the distortion {' '.join(f'{c:g}' for c in coefficients)} folds the image; the order "
            "is k1 k2 p1 p2 k3"
        )
    columns, rows = np.arange(size[0]), np.arange(size[1])[:, None]
    shift = max(np.abs(u - columns).max(), np.abs(v - rows).max())
    if shift < SAME_PIXEL:
        return Rectification(np.asarray(K, np.float64), u, v, is_identity=True)
    return Rectification(pinhole, u, v, is_identity=False)
