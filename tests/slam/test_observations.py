"""Points that are followed through a made-up graph, in which every match is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from ops.edge_system import pack_valid
from ops.sim3 import Sim3
from slam.graph import Graph
from slam.observations import SPACING, observe
from tests.slam import rim

SHAPE = HEIGHT, WIDTH = 8, 32


def graph_of(factors):
    """Of (i, j, pixel of ``i`` for each of ``j`` or -1, quality); none may be there."""
    i, j, index, quality = zip(*factors, strict=True)
    index = jnp.asarray(np.stack(index), jnp.int32)
    quality = jnp.broadcast_to(jnp.asarray(quality, jnp.float16)[:, None], index.shape)
    return Graph(
        size=jnp.int32(len(factors)),
        i=jnp.asarray(i, jnp.int32),
        j=jnp.asarray(j, jnp.int32),
        index=jnp.maximum(index, 0),
        valid=pack_valid(index >= 0),
        quality=quality,
    )


def moved(pixels):
    """Matches between images of a wall, the second of which shows it so much further left."""
    v, u = np.divmod(np.arange(HEIGHT * WIDTH), WIDTH)
    return np.where((u >= pixels) & (u < WIDTH + pixels), v * WIDTH + u - pixels, -1)


def link(a, b, pixels, quality=2.0):
    """Both factors between two images of the wall."""
    return [(a, b, moved(-pixels), quality), (b, a, moved(pixels), quality)]


def test_points_are_followed_to_the_very_pixels_that_match():
    shifts = np.array([0, 3, 9, 14])  # none is a multiple of the spacing away from all others
    factors = [f for k in range(3) for f in link(k, k + 1, shifts[k + 1] - shifts[k])]
    point, slot, pixel = observe(graph_of(factors), SHAPE, 4).T
    v, u = np.divmod(pixel, WIDTH)
    for number in np.unique(point):
        mine = point == number
        places = np.column_stack([v[mine], u[mine] + shifts[slot[mine]]])
        assert (places == places[0]).all(), "one point of the wall"
        assert (np.diff(slot[mine]) == 1).all(), "from image to image, each seen once"
        # As long as the wall's point is in view, and further back than where it was taken up.
        assert mine.sum() == ((shifts <= places[0, 1]) & (places[0, 1] < shifts + WIDTH)).sum()
    assert np.bincount(point).max() == 4


def test_every_image_hands_on_one_pixel_of_a_square():
    wall = observe(graph_of(link(0, 1, 5) + link(1, 2, 5)), SHAPE, 3)
    v, u = np.divmod(wall[wall[:, 1] == 2, 2], WIDTH)
    assert len(set(zip(v // SPACING, u // SPACING, strict=True))) == len(v)


def test_of_two_matches_the_shorter_way_counts_then_the_surer():
    # Image 2 sees the points of image 0 directly, and through image 1, which is two pixels off.
    direct, around = link(0, 2, 6, quality=1.0), [*link(0, 1, 3), *link(1, 2, 5)]
    point, slot, pixel = observe(graph_of(around + direct), SHAPE, 3).T
    first = point[slot == 0]
    both = first[np.isin(first, point[slot == 2])]
    assert len(both)
    for number in both:
        there, here = (pixel[(point == number) & (slot == k)].item() for k in (0, 2))
        assert there - here == 6
    # Two of image 0 land on one pixel of image 1; the next image is handed one of them.
    onto_one = np.full(HEIGHT * WIDTH, -1)
    onto_one[[2 * WIDTH + 2, 2 * WIDTH + 6]] = 2 * WIDTH + 7
    point, slot, _ = observe(graph_of([(1, 0, onto_one, 1.0), *link(1, 2, 1)]), SHAPE, 3).T
    assert set(point[(slot == 0)]) == {0, 1} and (point == 0).sum() == 3 and (point == 1).sum() == 2


def test_nothing_is_seen_twice_without_matches():
    nothing = graph_of([(1, 0, np.full(HEIGHT * WIDTH, -1), 1.0)])
    for num_keyframes in (0, 2):
        seen = observe(nothing.replace(size=jnp.int32(num_keyframes // 2)), SHAPE, num_keyframes)
        assert seen.shape == (0, 3) and seen.dtype == np.int32


@pytest.mark.slow
def test_pixels_of_a_point_show_one_place_of_the_room():
    result = rim.result()
    T_WC = Sim3(jnp.asarray(result.keyframes.T_WC.wxyz_xyz_scale)[:, None])
    points = np.asarray(T_WC.apply(jnp.asarray(result.keyframes.pointmap.points)))
    point, slot, pixel = result.observations.T
    first = np.unique(point, return_index=True)[1]
    again = np.setdiff1d(np.arange(len(point)), first)
    start = first[np.searchsorted(point[first], point[again])]
    apart = points[slot[again], pixel[again]] - points[slot[start], pixel[start]]
    assert len(again) > 500
    assert np.median(np.linalg.norm(apart, axis=1)) < 0.02  # metres; a pixel is wider than 1 cm
