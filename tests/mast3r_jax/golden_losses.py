"""Truth and correspondences of the golden losses, as arguments of ours."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np


def in_view_1(case: Mapping[str, np.ndarray], view: int) -> np.ndarray:
    """True points of a view in camera 1, in double precision; the file has them in the world."""
    to_camera = np.linalg.inv(case["camera_pose_1"].astype(np.float64))[:, None, None]
    points = case[f"gt_pts3d_{view}"].astype(np.float64)[..., None]
    turned = to_camera[..., :3, :3] @ points
    return turned[..., 0] + to_camera[..., :3, 3]


def targets(case: Mapping[str, np.ndarray], dtype: type = np.float32) -> tuple[tuple, tuple]:
    """What follows the predictions in ``confident_regression`` and in ``matching_infonce``."""
    truth = [in_view_1(case, view).astype(dtype) for view in (1, 2)]
    valid = [case[f"valid_mask_{view}"] for view in (1, 2)]
    sky = [case[f"sky_mask_{view}"] for view in (1, 2)]
    pixels = [case[f"corres_{view}"].astype(np.int32) for view in (1, 2)]
    regression = (*truth, *valid, case["is_metric_scale"], *sky)
    matching = (*pixels, case["valid_corres"])
    return jax.tree.map(jnp.asarray, (regression, matching))
