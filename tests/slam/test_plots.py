"""Pictures: written whole, and with what they should show in the right place."""

import sys

import numpy as np
import pytest
from PIL import Image

from slam import plots
from slam.plots import save_picture
from slam.plots.views import _spread
from slam.plots.world import _view_axes


def plot_trajectory(path, *positions, **options) -> None:
    save_picture(path, plots.plot_trajectory(plots.trajectory_scene(*positions, **options)))


def plot_map(path, *arguments, **options) -> None:
    save_picture(path, plots.plot_map(*arguments, **options))


@pytest.fixture(autouse=True)
def no_complaints(caplog):
    """matplotlib logs what it could not do."""
    yield
    assert caplog.text == ""


@pytest.fixture(autouse=True)
def no_pyplot():
    """pyplot is global state and may want a display."""
    before = "matplotlib.pyplot" in sys.modules
    yield
    assert ("matplotlib.pyplot" in sys.modules) == before


def shown(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] >= 800
    return pixels


def has_color(pixels: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    """Whether something is drawn in this colour; a few pixels are but the edges of letters."""
    return bool((np.abs(pixels.astype(int) - rgb).max(axis=2) <= 2).sum() > 100)


BLUE, TAN, ORANGE = (31, 95, 191), (168, 154, 136), (224, 123, 0)


def spiral(count: int = 60) -> np.ndarray:
    t = np.linspace(0, 6, count)
    return np.stack([np.cos(t) * t, 0.1 * t, np.sin(t) * t], axis=1)


def test_trajectory_shows_what_there_is(tmp_path):
    path = spiral()
    plot_trajectory(tmp_path / "a.png", path, title="spiral")
    alone = shown(tmp_path / "a.png")
    assert has_color(alone, BLUE) and not has_color(alone, TAN) and not has_color(alone, ORANGE)
    reference = 2 * path + 1 + 0.2 * np.random.default_rng(0).normal(size=path.shape)
    reference[5] = np.nan
    plot_trajectory(tmp_path / "b.png", path, reference, path[::10], title="spiral")
    full = shown(tmp_path / "b.png")
    assert has_color(full, BLUE) and has_color(full, TAN) and has_color(full, ORANGE)


VIOLET, PALE_ORANGE = (142, 68, 173), (242, 179, 102)


def drawn(path, rgb: tuple[int, int, int], columns: slice) -> int:
    """Pixels of about this colour in some columns of the view from above, without its frame."""
    pixels = shown(path)[140:560, columns].astype(int)
    return int((np.abs(pixels - rgb).max(axis=2) <= 40).sum())


def test_links_are_drawn_and_loop_links_told_apart(tmp_path):
    # Four keyframes at the corners of a square; the trajectory is but its left side.
    corners = np.array([[0, 0, 0], [0, 0, 4], [4, 0, 4], [4, 0, 0]], float)
    links, inside = np.array([[0, 1], [2, 3], [0, 2]]), slice(150, 580)

    def draw(name, **options):
        plot_trajectory(tmp_path / name, corners[:2], None, corners, **options)
        path = tmp_path / name
        return drawn(path, VIOLET, inside), drawn(path, PALE_ORANGE, inside)

    assert draw("none.png")[0] == draw("empty.png", links=np.zeros((0, 2), int))[0] == 0
    unlinked = draw("none.png")[1]  # the rims of the keyframes' dots
    violet, orange = draw("all.png", links=links)
    assert violet == 0 and orange > unlinked + 100
    violet, _ = draw("loop.png", links=links, is_loop_link=np.array([False, False, True]))
    assert violet > 100


@pytest.mark.parametrize("with_reference", [False, True])
def test_a_gap_is_not_bridged_by_a_line(tmp_path, with_reference):
    """Along a straight path from left to right, frames 10 to 49 of 60 are missing."""
    numbers = np.concatenate([np.arange(10), np.arange(50, 60)])
    line = np.stack([numbers, 0.01 * (numbers % 2), 0 * numbers], axis=1).astype(float)
    reference = line if with_reference else None
    options = {"title": "x", "up": "-y"}
    gap = slice(230, 460)  # of a view from above that spans columns 78 to 615
    plot_trajectory(tmp_path / "bridged.png", line, reference, **options)
    plot_trajectory(tmp_path / "t.png", line, reference, numbers=numbers, **options)
    for color in (BLUE, TAN) if with_reference else (BLUE,):
        assert drawn(tmp_path / "bridged.png", color, gap) > 100
        assert drawn(tmp_path / "t.png", color, gap) < 20  # the edges of letters and of the grid
        for end in (slice(80, 230), slice(460, 610)):
            assert drawn(tmp_path / "t.png", color, end) > 20


def test_the_map_does_not_bridge_a_gap_either(tmp_path):
    numbers = np.concatenate([np.arange(10), np.arange(50, 60)])
    line = np.stack([numbers, 0 * numbers, numbers], axis=1).astype(float)
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8)
    middle = np.s_[350:600, 450:650]  # of 980 rows and 1120 columns

    def blue(**options):
        plot_map(tmp_path / "m.png", *nothing, line, **options)
        pixels = shown(tmp_path / "m.png")[middle].astype(int)
        return int((np.abs(pixels - BLUE).max(axis=2) <= 40).sum())

    assert blue() > 100 and blue(numbers=numbers) == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_trajectories_are_drawn_without_an_error_that_means_nothing(tmp_path, count):
    plot_trajectory(tmp_path / "a.png", spiral(count), spiral(count), spiral(count))
    assert not has_color(shown(tmp_path / "a.png"), TAN)


def test_motionless_trajectory(tmp_path):
    plot_trajectory(tmp_path / "a.png", np.ones((5, 3)), np.zeros((5, 3)))
    shown(tmp_path / "a.png")


@pytest.mark.parametrize("up", ["+x", "-x", "+y", "-y", "+z", "-z"])
def test_the_view_from_above_is_not_mirrored(up):
    right, ahead, vertical, upward = _view_axes(up)
    axes = np.eye(3)
    towards_viewer = (1 if upward else -1) * axes[vertical]
    np.testing.assert_array_equal(np.cross(axes[right], axes[ahead]), towards_viewer)


def test_unknown_direction_is_refused(tmp_path):
    with pytest.raises(ValueError, match="up='y' is not a signed axis such as '-y'"):
        plot_trajectory(tmp_path / "a.png", spiral(), up="y")
    assert not (tmp_path / "a.png").exists()


def panels(tmp_path, **changes):
    rng = np.random.default_rng(0)
    v, u = np.indices((48, 64))
    arguments = {
        "image_f": rng.integers(0, 256, (48, 64, 3), np.uint8),
        "image_k": rng.integers(0, 256, (48, 64, 3), np.uint8),
        "depth_f": 1 + u / 20,
        "confidence_f": np.exp(v / 10),
        "uv": np.stack([u + 3, v - 1], axis=-1).astype(np.float32),
        "valid": u < 60,
        **changes,
    }
    picture = plots.plot_panels(**arguments, title="frame 5 against keyframe 0")
    save_picture(tmp_path / "p.png", picture)
    return shown(tmp_path / "p.png")


def test_panels_show_the_images(tmp_path):
    flat = np.zeros((48, 64, 3), np.uint8)
    pixels = panels(
        tmp_path, image_f=flat + np.uint8([9, 200, 90]), image_k=flat + np.uint8([90, 9, 200])
    )
    assert has_color(pixels, (9, 200, 90)) and has_color(pixels, (90, 9, 200))


@pytest.mark.parametrize(
    "changes",
    [
        {"valid": np.zeros((48, 64), bool)},
        {"depth_f": np.full((48, 64), np.nan)},
        {"depth_f": np.full((48, 64), 2.0)},
        {"confidence_f": np.full((48, 64), 1.0)},
        {"confidence_f": np.full((48, 64), np.inf)},
        {"depth_f": np.zeros((48, 64)), "confidence_f": np.zeros((48, 64))},
    ],
    ids=["no match", "no depth", "flat depth", "flat confidence", "infinite", "all zero"],
)
def test_panels_of_degenerate_predictions(tmp_path, changes):
    panels(tmp_path, **changes)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_lines_are_about_as_many_as_asked_and_all_valid(share):
    valid = np.zeros((96, 128), bool)
    valid[:, : int(share * 128)] = True
    rows, columns = _spread(valid, 40)
    assert valid[rows, columns].all()
    assert 20 <= len(rows) <= 80
    assert not len(_spread(np.zeros((96, 128), bool), 40)[0])


def test_map_shows_points_where_they_are_and_hides_the_ceiling(tmp_path):
    rng = np.random.default_rng(0)
    floor = rng.uniform(-2, 2, (20000, 3))
    floor[:, 1] = 1.5  # y is down: below the camera
    ceiling = floor - np.array([0, 3, 0])
    red = np.where(floor[:, :1] > 0, np.uint8([[200, 30, 30]]), np.uint8([[30, 160, 30]]))
    points = np.concatenate([floor, ceiling]).astype(np.float32)
    colors = np.concatenate([red, np.full_like(red, [200, 0, 200])])
    camera = np.array([[-1.0, 0, -1], [0, 0, 0], [1, 0, 1]])
    plot_map(tmp_path / "m.png", points, colors, camera, title="room")
    pixels = shown(tmp_path / "m.png")
    is_red = (np.abs(pixels.astype(int) - (200, 30, 30)).max(axis=2) <= 2).nonzero()
    is_green = (np.abs(pixels.astype(int) - (30, 160, 30)).max(axis=2) <= 2).nonzero()
    assert len(is_red[0]) > 1000 and len(is_green[0]) > 1000
    assert is_green[1].mean() < is_red[1].mean()  # x runs to the right
    assert not has_color(pixels, (200, 0, 200)) and has_color(pixels, BLUE)


@pytest.mark.parametrize("count", [0, 1])
def test_map_of_next_to_nothing(tmp_path, count):
    points = np.zeros((count, 3), np.float32)
    plot_map(tmp_path / "m.png", points, np.zeros((count, 3), np.uint8))
    plot_map(tmp_path / "m.png", points, np.zeros((count, 3), np.uint8), np.zeros((1, 3)))
    shown(tmp_path / "m.png")
