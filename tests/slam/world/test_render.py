import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slam.world import RenderConfig, random_pose, random_room, render, sees
from tests.slam.world import ray_caster

SHAPE = (48, 64)
K = jnp.array([[52.0, 0.0, 30.3], [0.0, 49.0, 24.6], [0.0, 0.0, 1.0]])  # off centre, not square


@functools.cache
def scene(seed):
    room_key, pose_key = jax.random.split(jax.random.key(seed))
    room = random_room(room_key)
    return room, random_pose(pose_key, room)


@functools.cache
def view_of(seed):
    room, T_WC = scene(seed)
    return render(room, T_WC, K, SHAPE)


def pixels(shape=SHAPE):
    u, v = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    return np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float64)


def directions_C(K, uv):
    K = np.asarray(K, np.float64)
    rays = np.linalg.solve(K, np.concatenate([uv, np.ones((len(uv), 1))], axis=1).T).T
    return rays / rays[:, 2:]


def compare_with_ray_caster(room, T_WC, rays_C, view):
    T = np.asarray(T_WC, np.float64)
    depth, ids = ray_caster.cast(room, T[:3, 3], rays_C @ T[:3, :3].T)
    same = np.asarray(view.object_id).ravel() == ids
    # Float32 decides pixels within about 1e-6 of a silhouette the other way.
    assert same.mean() > 0.998
    error = np.abs(np.asarray(view.depth, np.float64).ravel() - depth)[same] / depth[same]
    # Float32 rounding through a few operations; only rays that graze a round solid, where the
    # square root magnifies it, may be worse.
    assert np.quantile(error, 0.99) < 2e-6
    assert error.max() < 1e-3
    return depth, ids


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_depth_and_ids_equal_float64_ray_caster(seed):
    room, T_WC = scene(seed)
    compare_with_ray_caster(room, T_WC, directions_C(K, pixels()), view_of(seed))


def test_all_kinds_of_solids_were_seen():
    room, _ = scene(0)
    seen = np.unique(np.concatenate([np.unique(view_of(seed).object_id) for seed in range(6)]))
    first_sphere, first_tube = 6 + room.num_boxes, 6 + room.num_boxes + room.num_spheres
    assert ((seen >= 6) & (seen < first_sphere)).sum() >= 10
    assert ((seen >= first_sphere) & (seen < first_tube)).sum() >= 2
    assert (seen >= first_tube).sum() >= 2
    assert set(range(6)) <= set(seen.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_points_are_where_depth_says_and_normals_face_the_camera(seed):
    _, T_WC = scene(seed)
    view = view_of(seed)
    T = np.asarray(T_WC, np.float64)
    depth = np.asarray(view.depth, np.float64).reshape(-1, 1)
    expected = depth * directions_C(K, pixels()) @ T[:3, :3].T + T[:3, 3]
    np.testing.assert_allclose(np.asarray(view.points_W).reshape(-1, 3), expected, atol=1e-5)
    normals = np.asarray(view.normals_W, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-5)
    towards = T[:3, 3] - expected
    assert ((normals * towards).sum(axis=1) > -1e-5).all()


def test_normals_equal_the_surface_gradient():
    """Normals against central differences of the float64 distance to the solid's surface."""
    checked = 0
    for seed in range(3):
        room, _ = scene(seed)
        view = view_of(seed)
        ids = np.asarray(view.object_id).ravel()
        points = np.asarray(view.points_W, np.float64).reshape(-1, 3)
        normals = np.asarray(view.normals_W, np.float64).reshape(-1, 3)
        for solid in ray_caster.solids(room):
            mine = np.flatnonzero(ids == solid[4])[::7]
            if not len(mine):
                continue
            alone = room.replace(
                active=jnp.zeros_like(room.active).at[solid[4] - 6].set(True),
                size=jnp.array([1e3, 1e3, 1e3]),
                centre=room.centre + jnp.array([0.0, 0.0, 100.0]),
            )
            step, gradient = 1e-4, np.zeros((len(mine), 3))
            # A little off the surface, where the distance is smooth but at edges and corners.
            outside = points[mine] + [0.0, 0.0, 100.0] + 1e-3 * normals[mine]
            for axis in range(3):
                shift = step * np.eye(3)[axis]
                ahead = ray_caster.clearance(alone, outside + shift)
                gradient[:, axis] = (ahead - ray_caster.clearance(alone, outside - shift)) / (
                    2 * step
                )
            error = np.abs(gradient - normals[mine]).max(axis=1)
            assert np.median(error) < 1e-3 and (error < 1e-2).mean() > 0.9
            checked += len(mine)
    assert checked > 200


def test_every_ray_hits_the_closed_room():
    """At many random cameras: finite positive depth not beyond the room's diagonal, no NaN."""
    for seed in range(6):
        room, _ = scene(seed)
        for pose_key in jax.random.split(jax.random.key(100 + seed), 5):
            view = render(room, random_pose(pose_key, room), K, SHAPE)
            rays = np.linalg.norm(directions_C(K, pixels()), axis=1)
            length = np.asarray(view.depth).ravel() * rays
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(view))
            assert length.min() > 0.3 and length.max() < np.linalg.norm(room.size)
            assert view.rgb.min() >= 0 and view.rgb.max() <= 1
            assert 0.15 < float(view.rgb.mean()) < 0.8  # neither black nor burnt out


def test_second_view_sees_the_same_points_and_colours():
    """Pixels of view 1, moved by depth and pose, meet the same surface and colour in view 2."""
    errors, colours, contrast = [], [], []
    for seed in range(4):
        room, T_WC1 = scene(seed)
        # 10 cm to the right, 6 cm ahead, 5 degrees to the left.
        c, s = np.cos(np.deg2rad(5)), np.sin(np.deg2rad(5))
        step = jnp.array(
            [[c, 0, -s, 0.1], [0, 1, 0, 0], [s, 0, c, 0.06], [0, 0, 0, 1]], jnp.float32
        )
        T_WC2 = T_WC1 @ step
        view_1, view_2 = view_of(seed), render(room, T_WC2, K, SHAPE)
        T = np.linalg.inv(np.asarray(T_WC2, np.float64))
        X = np.asarray(view_1.points_W, np.float64).reshape(-1, 3) @ T[:3, :3].T + T[:3, 3]
        p = X @ np.asarray(K, np.float64).T
        uv = p[:, :2] / p[:, 2:]
        base = np.floor(uv).astype(int)
        seen = ((base >= 0) & (base < [SHAPE[1] - 1, SHAPE[0] - 1])).all(axis=1) & (X[:, 2] > 0)
        base, uv, z = base[seen], uv[seen], X[seen, 2]
        corners = [(base[:, 1] + dv, base[:, 0] + du) for dv in (0, 1) for du in (0, 1)]
        wanted_id = np.asarray(view_1.object_id).ravel()[seen]
        wanted_normal = np.asarray(view_1.normals_W).reshape(-1, 3)[seen]
        same = np.ones(len(z), bool)
        for at in corners:
            same &= np.asarray(view_2.object_id)[at] == wanted_id
            same &= (np.asarray(view_2.normals_W)[at] * wanted_normal).sum(axis=1) > 1 - 1e-5
        assert same.mean() > 0.5
        f = (uv - base)[same]
        weights = [(1 - f[:, 1]) * (1 - f[:, 0]), (1 - f[:, 1]) * f[:, 0]]
        weights += [f[:, 1] * (1 - f[:, 0]), f[:, 1] * f[:, 0]]

        def sample(image, corners=corners, weights=weights, same=same):
            image = np.asarray(image, np.float64)
            taken = [image[at][same] for at in corners]
            return sum(
                w.reshape(-1, *[1] * (x.ndim - 1)) * x for w, x in zip(weights, taken, strict=True)
            )

        # Inverse depth is affine in the pixel on a plane, so interpolating it is exact there.
        errors.append(np.abs(sample(1 / np.asarray(view_2.depth)) * z[same] - 1))
        rgb_1 = np.asarray(view_1.rgb).reshape(-1, 3)[seen][same]
        colours.append(np.abs(sample(view_2.rgb) - rgb_1).mean(axis=1))
        contrast.append(np.abs(rgb_1 - rgb_1[::-1]).mean(axis=1))
    assert np.concatenate(errors).max() < 1e-4
    # Interpolating a texture with detail down to the pixel blurs it; other points differ by much
    # more than that.
    assert np.median(np.concatenate(colours)) < 0.02
    assert np.concatenate(colours).mean() < 0.2 * np.concatenate(contrast).mean()


@pytest.mark.slow
def test_sees_what_the_ray_caster_meets_first():
    """Points that one camera sees, judged from the place of another."""
    hidden = 0
    for seed in range(4):
        room, _ = scene(seed)
        points = view_of(seed).points_W
        origin = random_pose(jax.random.key(50 + seed), room)[:3, 3]
        seen = np.asarray(sees(room, origin, points)).ravel()
        origin = np.asarray(origin, np.float64)
        rays = np.asarray(points, np.float64).reshape(-1, 3) - origin
        first, _ = ray_caster.cast(room, origin, rays)
        # Surfaces closer behind each other than a hundredth of their distance do not count.
        clear = (first > 0.9999) | (first < 0.99)
        np.testing.assert_array_equal(seen[clear], first[clear] > 0.9999)
        assert clear.mean() > 0.9 and seen.mean() > 0.2
        hidden += (~seen).sum()
    assert hidden > 300


def test_neighbouring_pixels_differ_and_rooms_differ():
    """Texture at the scale of pixels for matching, and places that do not look alike."""
    for seed in range(4):
        rgb = np.asarray(view_of(seed).rgb)
        assert np.abs(np.diff(rgb, axis=1)).mean() > 0.01
    for seed in range(1, 4):
        assert np.abs(np.asarray(view_of(seed).rgb - view_of(0).rgb)).mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("coefficients", [(-0.12, 0.03, 0.004, -0.003), (0.1, -0.02, 0.0, 0.0)])
def test_distorted_image_follows_opencv(coefficients):
    room, T_WC = scene(1)
    view = render(room, T_WC, K, SHAPE, jnp.array(coefficients, jnp.float32))
    # OpenCV's projection of the points the pixels saw gives the pixels back.
    T_CW = np.linalg.inv(np.asarray(T_WC, np.float64))
    X_C = np.asarray(view.points_W, np.float64).reshape(-1, 3) @ T_CW[:3, :3].T + T_CW[:3, 3]
    uv, _ = cv2.projectPoints(
        X_C, np.zeros(3), np.zeros(3), np.asarray(K, np.float64), np.array(coefficients)
    )
    # Float32 rays at 50 pixels a unit, and points of float32 metres.
    np.testing.assert_allclose(uv[:, 0], pixels(), atol=1e-3)
    # And along those rays the depth is that of the room.
    compare_with_ray_caster(room, T_WC, X_C / X_C[:, 2:], view)
    straight = np.asarray(view_of(1).depth)
    assert np.abs(np.asarray(view.depth) - straight).max() > 0.05  # it does something


def test_zero_distortion_changes_nothing():
    room, T_WC = scene(1)
    view = render(room, T_WC, K, SHAPE, jnp.zeros(4))
    np.testing.assert_allclose(view.depth, view_of(1).depth, rtol=1e-5)


@pytest.mark.slow
def test_vmap_over_rooms_poses_and_intrinsics_equals_the_loop():
    rooms = [scene(seed)[0] for seed in range(3)]
    poses = jnp.stack([scene(seed)[1] for seed in range(3)])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rooms)
    views = jax.vmap(lambda r, T, k: render(r, T, k, SHAPE))(stacked, poses, jnp.stack([K] * 3))
    for i in range(3):
        same = views.object_id[i] == view_of(i).object_id
        assert same.mean() > 0.998  # the order of operations may differ at silhouettes
        np.testing.assert_allclose(views.depth[i][same], view_of(i).depth[same], rtol=1e-3)


@pytest.mark.slow
def test_supersampling_averages_colour_and_keeps_depth():
    room, T_WC = scene(2)
    smooth = render(room, T_WC, K, SHAPE, config=RenderConfig(supersampling=2))
    plain = view_of(2)
    np.testing.assert_allclose(smooth.depth, plain.depth, rtol=1e-5)
    assert 0 < np.abs(np.asarray(smooth.rgb - plain.rgb)).mean() < 0.05


@pytest.mark.slow
def test_shadows_only_darken_and_exposure_brightens():
    room, T_WC = scene(3)
    lit = render(room, T_WC, K, SHAPE, config=RenderConfig(shadows=False))
    plain = np.asarray(view_of(3).rgb)
    assert (np.asarray(lit.rgb) >= plain - 1e-5).all() and np.asarray(lit.rgb).mean() > plain.mean()
    brighter = render(room, T_WC, K, SHAPE, None, jnp.float32(2.0))
    assert (np.asarray(brighter.rgb) >= plain - 1e-6).all()
