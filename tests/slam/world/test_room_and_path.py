import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slam.world import PathConfig, RoomConfig, camera_path, focal_path, random_pose, random_room
from tests.slam.world import ray_caster

SEEDS = range(12)


@functools.cache
def room_of(seed):
    return random_room(jax.random.key(seed))


@functools.cache
def path_of(seed, num_frames=150, laps=1.0):
    config = PathConfig(laps=laps)
    path = camera_path(jax.random.key(1000 + seed), room_of(seed), num_frames, config)
    return np.asarray(path, np.float64)


def turns(rotations):
    """Angles in degrees between consecutive rotations."""
    relative = np.swapaxes(rotations[:-1], 1, 2) @ rotations[1:]
    cosine = 0.5 * (np.trace(relative, axis1=1, axis2=2) - 1)
    return np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))


@pytest.mark.parametrize("seed", SEEDS)
def test_free_region_is_free(seed):
    """Points all over the region the room declares free are outside every solid."""
    room = room_of(seed)
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, 4000), np.sqrt(rng.uniform(0, 1, 4000)) * 0.999
    a, b = np.asarray(room.free_semi_axes, np.float64)
    low, high = np.asarray(room.free_height, np.float64)
    z = rng.uniform(low, high, 4000)
    points = np.stack([a * radius * np.cos(angle), b * radius * np.sin(angle), z], axis=1)
    assert ray_caster.clearance(room, points).min() > 0


def test_rooms_are_realistic_and_furnished():
    rooms = [room_of(seed) for seed in SEEDS]
    sizes = np.stack([room.size for room in rooms])
    assert (sizes[:, :2] >= 4).all() and (sizes[:, :2] <= 8).all()
    assert (sizes[:, 2] >= 2.4).all() and (sizes[:, 2] <= 3.2).all()
    assert all(int(room.active.sum()) >= 20 for room in rooms)
    for room in rooms:
        low = np.asarray(room.centre - room.half)[np.asarray(room.active)]
        high = np.asarray(room.centre + room.half)[np.asarray(room.active)]
        assert low[:, 2].min() > -1e-5 and (high[:, 2] <= room.size[2] + 1e-5).all()
        # Light comes from inside the room, not from inside a solid.
        assert ray_caster.clearance(room, np.asarray(room.light_position, np.float64)).min() > 0.05


@pytest.mark.slow
def test_rooms_are_deterministic_and_batch():
    keys = jax.random.split(jax.random.key(5), 3)
    batch = jax.vmap(random_room)(keys)
    for i in range(3):
        leaves = jax.tree.leaves(random_room(keys[i])), jax.tree.leaves(batch)
        for one, many in zip(*leaves, strict=True):
            np.testing.assert_allclose(one, many[i], rtol=1e-6, atol=1e-6)
    assert not np.allclose(batch.size[0], batch.size[1])


def test_a_room_without_clutter_has_only_lamps():
    room = random_room(jax.random.key(0), RoomConfig(clutter=0.0))
    lamps = np.asarray(room.active)
    assert lamps.sum() == RoomConfig().lamps
    assert (np.asarray(room.centre)[lamps, 2] > float(room.size[2]) - 0.1).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_path_keeps_clear_of_everything(seed):
    assert ray_caster.clearance(room_of(seed), path_of(seed)[:, :3, 3]).min() > 0.3
    poses = [random_pose(key, room_of(seed)) for key in jax.random.split(jax.random.key(seed), 20)]
    positions = np.stack([np.asarray(T, np.float64)[:3, 3] for T in poses])
    assert ray_caster.clearance(room_of(seed), positions).min() > 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_poses_are_rigid_upright_and_at_head_height(seed):
    T = path_of(seed)
    R = T[:, :3, :3]
    # A sine and a cosine of float32 are right to a few 1e-7, and products of three are taken.
    np.testing.assert_allclose(R @ np.swapaxes(R, 1, 2), np.eye(3)[None].repeat(150, 0), atol=3e-6)
    np.testing.assert_allclose(np.linalg.det(R), 1.0, atol=3e-6)
    np.testing.assert_array_equal(T[:, 3], np.tile([0.0, 0.0, 0.0, 1.0], (150, 1)))
    assert T[:, 2, 3].min() > 1.2 and T[:, 2, 3].max() < 1.7
    assert (R[:, 2, 1] < -0.85).all()  # the image's down is within 32 degrees of the world's


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_are_small_and_smooth(seed):
    T = path_of(seed)
    steps = np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1)
    assert 0.02 < steps.mean() < 0.045 and steps.max() < 0.07
    angles = turns(T[:, :3, :3])
    assert 1.0 < angles.mean() < 2.7 and angles.max() < 3.6
    # Accelerations of a hand, not of noise: far below the speed itself.
    jerk = np.linalg.norm(np.diff(T[:, :3, 3], n=2, axis=0), axis=1)
    assert jerk.max() < 0.01


@pytest.mark.parametrize("seed", SEEDS)
def test_second_lap_sees_the_first_again(seed):
    T = path_of(seed, 300, 2.0)
    lap = 299 // 2
    first, second = T[: 300 - lap], T[lap:]
    apart = np.linalg.norm(first[:, :3, 3] - second[:, :3, 3], axis=1)
    angle = np.rad2deg(np.arccos(np.clip((first[:, :3, 2] * second[:, :3, 2]).sum(1), -1, 1)))
    assert np.median(apart) < 0.4 and np.median(angle) < 25
    # And between the visits it was elsewhere.
    away = np.linalg.norm(T[lap // 2, :3, 3] - T[0, :3, 3])
    assert away > 2 * np.median(apart)


def test_too_few_frames_end_the_walk_early_at_the_same_pace():
    T = path_of(0, 40)
    assert turns(T[:, :3, :3]).max() < 3.6
    assert np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1).max() < 0.07


def test_a_walk_can_be_followed_beyond_its_end():
    longer = camera_path(jax.random.key(1000), room_of(0), 150, length=180)
    assert longer.shape == (180, 4, 4)
    # Two programs for the same formulas.
    np.testing.assert_allclose(longer[:150], path_of(0), atol=2e-6)
    T = np.asarray(longer, np.float64)
    assert np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1).max() < 0.07


def test_one_frame_is_a_path():
    assert path_of(0, 1).shape == (1, 4, 4) and np.isfinite(path_of(0, 1)).all()


def test_zoom_is_smooth_and_covers_its_range():
    factors = np.asarray(focal_path(150, 2.0), np.float64)
    np.testing.assert_allclose([factors.min(), factors.max()], [1.0, 2.0], rtol=1e-3)
    assert np.abs(np.diff(np.log(factors))).max() < 0.05
    np.testing.assert_array_equal(focal_path(20, 1.0), np.ones(20, np.float32))
    assert focal_path(1, 2.0).tolist() == [1.0]


@pytest.mark.slow
def test_path_is_a_pure_function_of_its_key():
    again = camera_path(jax.random.key(1000), room_of(0), 150)
    np.testing.assert_array_equal(np.asarray(again, np.float64), path_of(0))
    assert not np.allclose(camera_path(jax.random.key(7), room_of(0), 150), again)
    keys = jax.random.split(jax.random.key(3), 2)
    rooms = jax.tree.map(lambda *leaves: jnp.stack(leaves), room_of(0), room_of(1))
    batch = jax.vmap(lambda k, r: camera_path(k, r, 20))(keys, rooms)
    assert batch.shape == (2, 20, 4, 4)
