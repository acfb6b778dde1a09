"""Preparation: ground truth follows the image through resize and crop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mast3r_jax.image import prepare_image
from slam.io.frames import SourceError, SourceFrame
from slam.io.open_source import open_source
from slam.io.preparation import prepare_frame, prepare_frames
from slam.types import Frame
from tests.slam.io.recordings import picture, write_tum

K = np.array([[420.0, 0.0, 201.0], [0.0, 425.0, 148.0], [0.0, 0.0, 1.0]])


def full_frame(index: int = 3, height: int = 300, width: int = 401) -> SourceFrame:
    return SourceFrame(
        index=index,
        timestamp=1.3e9 + 0.1 * index,
        rgb=np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8),
        depth=np.full((height, width), 2.5, np.float32),
        T_WC=np.eye(4) + np.diag([1.0, 2.0, 3.0], 1) * 0.1,
        K=K,
        origin=f"walk/{index}.png",
    )


def test_leaves_are_numpy_of_the_promised_types():
    source = full_frame()
    frame = prepare_frame(source, 224, 1.3e9)
    assert isinstance(frame, Frame)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(frame))
    assert frame.index.dtype == np.int32 and frame.index == 3
    # Before rounding to float32 the difference of stamps near 1e9 is known to 2.4e-7 s.
    assert frame.timestamp.dtype == np.float32 and abs(float(frame.timestamp) - 0.3) < 3e-7
    assert frame.image.dtype == np.uint8
    np.testing.assert_array_equal(frame.image, prepare_image(source.rgb, 224).rgb)
    assert frame.T_WC.dtype == frame.K.dtype == frame.depth.dtype == np.float32
    np.testing.assert_array_equal(frame.T_WC, source.T_WC.astype(np.float32))


def test_a_prepared_frame_goes_through_jit():
    frame = prepare_frame(full_frame(), 64, 1.3e9)
    total = jax.jit(lambda f: jnp.sum(f.depth) + f.index.astype(jnp.float32))(frame)
    assert float(total) == pytest.approx(2.5 * frame.depth.size + 3)
    on_device = jax.device_put(frame)
    assert isinstance(on_device, Frame) and isinstance(on_device.image, jax.Array)


def test_sensors_that_are_not_there_stay_away():
    frame = prepare_frame(SourceFrame(index=0, timestamp=5.0, rgb=picture(0)), 64, 5.0)
    assert frame.depth is None and frame.T_WC is None and frame.K is None
    assert frame.timestamp == 0.0


@pytest.mark.parametrize("size", [224, 512, 256])
def test_depth_and_intrinsics_stay_consistent(size):
    """A slanted plane seen by a pinhole camera is the same plane after preparation.

    Depth is that of the nearest source pixel, up to half a source pixel off in u and v, and the
    original's intrinsics ignore that pixel centres sit at integers: (scale - 1) / 2 source pixels
    more, and half a pixel where a half crop was rounded. The plane's slope turns pixels into depth.
    """
    height, width = 300, 401
    v, u = np.indices((height, width))
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
    normal, offset = np.array([0.3, -0.2, 1.0]), 2.0
    source = SourceFrame(
        index=0,
        timestamp=0.0,
        rgb=np.zeros((height, width, 3), np.uint8),
        depth=(offset / (rays @ normal)).astype(np.float32),
        K=K,
    )
    frame = prepare_frame(source, size, 0.0)
    v, u = np.indices(frame.depth.shape)
    fx, fy, cx, cy = frame.K[0, 0], frame.K[1, 1], frame.K[0, 2], frame.K[1, 2]
    rays = np.stack([(u - cx) / fx, (v - cy) / fy, np.ones_like(u)], -1)
    points = rays * frame.depth[..., None]
    # On the plane the product is `offset`; a pixel off changes it by depth * slope / focal length.
    scale = width / max(frame.image.shape[1], 1)
    pixels = 0.5 + abs(scale - 1) / 2 + 0.5 * scale
    bound = pixels * frame.depth.max() * (0.3 / K[0, 0] + 0.2 / K[1, 1])
    assert np.abs(points @ normal - offset).max() < bound < 0.01


def test_unknown_depth_is_not_blended():
    depth = np.zeros((48, 64), np.float32)
    depth[:, 32:] = 4.0
    source = SourceFrame(index=0, timestamp=0.0, rgb=picture(0), depth=depth)
    assert set(np.unique(prepare_frame(source, 32, 0.0).depth)) == {0.0, 4.0}


def test_a_run_counts_time_from_its_first_frame(tmp_path):
    source = open_source(write_tum(tmp_path / "t"), start=2, depth_scale=1000.0)
    pairs = list(prepare_frames(source, 64))
    np.testing.assert_allclose([f.timestamp for _, f in pairs], [0, 0.1, 0.2, 0.3], atol=1e-6)
    assert [raw.timestamp for raw, _ in pairs] == pytest.approx([1000.2, 1000.3, 1000.4, 1000.5])
    assert [int(f.index) for _, f in pairs] == [0, 1, 2, 3]
    structures = {jax.tree.structure(f) for _, f in pairs}
    assert len(structures) == 1


def test_mixed_sizes_are_refused_naming_both():
    frames = [full_frame(0), full_frame(1), full_frame(2, height=200, width=300)]
    prepared = prepare_frames(frames, 64)
    next(prepared), next(prepared)
    with pytest.raises(SourceError, match=r"walk/2\.png: image is 300x200 but walk/0\.png is 401x"):
        next(prepared)


def test_sensors_that_come_and_go_are_refused():
    frames = [full_frame(0), SourceFrame(index=1, timestamp=0.0, rgb=full_frame(1).rgb, K=K)]
    message = r"frame 1: carries intrinsics but walk/0\.png carries depth, a pose, intrinsics"
    with pytest.raises(SourceError, match=message):
        list(prepare_frames(frames, 64))


def test_what_cannot_be_prepared_names_the_image():
    narrow = SourceFrame(
        index=0, timestamp=0.0, rgb=np.zeros((10, 640, 3), np.uint8), origin="a.png"
    )
    with pytest.raises(SourceError, match=r"a\.png: image of 640x10 pixels is too narrow"):
        prepare_frame(narrow, 512, 0.0)
    depth = SourceFrame(index=4, timestamp=0.0, rgb=picture(0), depth=np.zeros((5, 5), np.float32))
    with pytest.raises(SourceError, match=r"frame 4: values of shape \(5, 5\) do not belong"):
        prepare_frame(depth, 64, 0.0)
