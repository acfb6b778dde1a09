"""Matches in a scene made by hand, where it is known what hides what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training.correspondences import (
    Sight,
    mutual_pixels,
    pair_batch,
    sample_correspondences,
)
from tests.experiments.training.scene import (
    BALL,
    BOX,
    HEIGHT,
    T_12,
    T_W1,
    T_W2,
    WIDTH,
    K,
    camera,
    hidden_by,
    look,
    project,
    sight,
)

match = jax.jit(mutual_pixels, static_argnames="tolerance")


def mutual_of(view_1, view_2, T_12):
    found = match(view_1, view_2, jnp.asarray(T_12, jnp.float32), tolerance=0.0)
    return tuple(np.asarray(x) for x in found)


@pytest.fixture(scope="module")
def mutual():
    return mutual_of(sight(T_W1), sight(T_W2), T_12)


def test_what_view_1_cannot_see_is_never_matched(mutual):
    _, matched = mutual
    points, _, ids = look(T_W2)
    uv, z = project(T_W1, points)
    outside = (z <= 0) | (uv < -0.501).any(axis=1) | (uv > [WIDTH - 0.499, HEIGHT - 0.499]).any(1)
    # The walls behind box and ball, as seen past them from the other place: where view 1's nearest
    # pixel shows what is in front.
    pixels = np.clip(np.rint(uv), 0, [WIDTH - 1, HEIGHT - 1]).astype(int)
    front = look(T_W1)[0][pixels @ [1, WIDTH]]
    behind = ~outside & (z - project(T_W1, front)[1] > 0.3) & (hidden_by(T_W1, points) > 0.3)
    assert outside.sum() > 50 and behind.sum() > 50 and (ids[behind] < BOX).all()
    assert not matched[outside].any()
    assert not matched[behind].any()


def test_matches_are_all_there_are(mutual):
    """Against a search in float64: nearest pixels, of one face, that lead to each other."""
    to_1, matched = mutual
    points_1, normals_1, ids_1 = look(T_W1)
    points_2, normals_2, ids_2 = look(T_W2)
    uv, _ = project(T_W1, points_2)
    back, _ = project(T_W2, points_1)
    expected, certain = np.zeros_like(matched), np.ones_like(matched)
    for n, (u, v) in enumerate(uv):
        pixel = np.rint([u, v]).astype(int)
        if (pixel < 0).any() or (pixel >= [WIDTH, HEIGHT]).any():
            continue
        m = pixel[0] + WIDTH * pixel[1]
        returned = np.rint(back[m]).astype(int)
        facing = normals_1[m] @ normals_2[n] > 0.5
        expected[n] = (
            returned[0] + WIDTH * returned[1] == n and ids_1[m] == ids_2[n] and bool(facing)
        )
        if expected[n] and matched[n]:
            assert to_1[n] == m
        # Half-way between pixels float32 may round to the other; and two surfaces that meet
        # within a pixel, 3 m / 28, are one there.
        places = np.r_[u, v, back[m]]
        half_way = np.abs(np.abs(places - np.rint(places)) - 0.5).min() < 1e-4
        meeting = ids_1[m] != ids_2[n] and np.linalg.norm(points_1[m] - points_2[n]) < 0.15
        certain[n] = not (half_way or meeting)
    np.testing.assert_array_equal(matched[certain], expected[certain])
    assert expected.sum() > 300 and certain.mean() > 0.9
    assert set(ids_2[matched]) >= {BOX, BALL}


def test_both_sides_of_a_board_are_not_one_surface():
    """Cameras on either side of a thin wall, their pixels meeting in the same places."""
    T_A, T_B = camera([0.0, 0.0, 1.0], 0.0, 0.0), camera([2.02, 0.0, 1.0], np.pi, 0.0)

    def facing(depth):
        u, v = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(u.shape)], -1)
        return Sight(
            points=jnp.asarray(depth * rays, jnp.float32),
            normals=jnp.broadcast_to(jnp.array([0.0, 0.0, -1.0]), (HEIGHT, WIDTH, 3)),
            known=jnp.ones((HEIGHT, WIDTH), bool),
            K=jnp.asarray(K, jnp.float32),
        )

    _, matched = mutual_of(facing(1.0), facing(1.0), np.linalg.inv(T_A) @ T_B)
    assert not matched.any()


def test_unknown_pixels_are_not_matched():
    view_1, view_2 = sight(T_W1), sight(T_W2)
    hole_1 = view_1.replace(known=view_1.known.at[5:15].set(False))
    hole_2 = view_2.replace(normals=view_2.normals.at[:, 20:].set(0.0))
    to_1, matched = mutual_of(hole_1, hole_2, T_12)
    rows = to_1[matched] // WIDTH
    assert matched.any() and not ((rows >= 5) & (rows < 15)).any()
    assert not matched.reshape(HEIGHT, WIDTH)[:, 20:].any()


@pytest.mark.parametrize(("n", "unmatched"), [(100, 0.25), (HEIGHT * WIDTH, 0.0)])
def test_sample_has_no_pixel_twice_and_only_true_matches(mutual, n, unmatched):
    to_1, matched = mutual
    chance = jnp.asarray(np.random.default_rng(3).random((2, HEIGHT * WIDTH)), jnp.float32)
    pixels_1, pixels_2, true = (
        np.asarray(x)
        for x in sample_correspondences(
            chance, jnp.asarray(to_1), jnp.asarray(matched), n, unmatched
        )
    )
    assert true.sum() == min(matched.sum(), n - round(unmatched * n))
    np.testing.assert_array_equal(pixels_1[true], to_1[pixels_2[true]])
    assert matched[pixels_2[true]].all()
    assert len(np.unique(pixels_1)) == len(np.unique(pixels_2)) == n


def test_more_correspondences_than_pixels_are_refused():
    views = jax.tree.map(lambda *x: jnp.stack(x)[None], sight(T_W1), sight(T_W2))
    with pytest.raises(ValueError, match="973 correspondences of images with 972 pixels"):
        pair_batch(
            jax.random.key(0),
            jnp.zeros((1, 2, HEIGHT, WIDTH, 3)),
            views,
            jnp.eye(4)[None],
            jnp.ones(1, bool),
            n=973,
            unmatched=0.0,
        )
