"""The viewer without a browser: what it asks of a run, what it sends, and how it fails."""

import concurrent.futures
import dataclasses
import re
import socket
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from ops import Sim3
from slam.cli import main
from slam.io.frames import SourceError
from slam.snapshot import KeyframeView, Observer
from tests.slam.pieces import made_up
from tests.slam.viewer.maps import DEPTH, FOCAL, HEIGHT, WIDTH, pose, snapshot, wall

viser = pytest.importorskip("viser", reason="viser is not installed: pip install '.[viewer]'")

from slam.viewer import Viewer  # noqa: E402
from slam.viewer import viewer as viewer_module  # noqa: E402
from slam.viewer.cloud import KEPT, Cloud, Lens, halvings_for  # noqa: E402
from slam.viewer.panel import depth_picture  # noqa: E402
from slam.viewer.viewer import PERIOD, REST  # noqa: E402


@pytest.fixture
def reports():
    return []


@pytest.fixture
def viewer(reports, monkeypatch):
    monkeypatch.setattr(viewer_module, "REST", 0.0)  # which would depend on the machine
    with Viewer("127.0.0.1", 0, report=reports.append) as viewer:
        yield viewer
    assert viewer._worker.is_alive() is False


def one(**fields):
    return snapshot([pose()], {0: wall(0)}, **fields)


def node(viewer, name):
    return viewer._server.scene.get_handle_by_name(name)


def later(function):
    """What a function returns in another thread, as a run would call it."""
    return concurrent.futures.ThreadPoolExecutor(1).submit(function)


def test_is_ready_when_nothing_is_drawn_and_some_time_has_passed(viewer):
    assert isinstance(viewer, Observer)
    assert viewer.ready()
    gate = threading.Event()
    begin = time.monotonic()
    viewer.take(lambda: (gate.wait(10), one())[1])
    assert time.monotonic() - begin < 0.1, "the run must not wait for the way to the host"
    time.sleep(1.2 * PERIOD)
    assert not viewer.ready(), "still fetching"
    gate.set()
    assert viewer.wait_until_drawn(10.0)
    assert viewer.ready()
    viewer.show(one())
    assert not viewer.ready(), "just drawn"
    time.sleep(1.2 * PERIOD)
    assert viewer.ready()


def test_what_took_long_to_draw_is_not_drawn_again_soon(viewer, monkeypatch):
    def busy():
        end = time.thread_time() + 0.5
        while time.thread_time() < end:
            pass
        return one()

    monkeypatch.setattr(viewer_module, "REST", REST)
    viewer.take(busy)
    assert viewer.wait_until_drawn(30.0)
    for ago, ready in ((0.4 * REST, False), (1000.0, True)):  # seconds since it was taken
        viewer._last = time.monotonic() - ago
        assert viewer.ready() is ready


def test_a_paused_run_waits_takes_steps_and_goes_on(viewer):
    viewer.pause()
    answer = later(viewer.ready)
    assert not concurrent.futures.wait([answer], 0.2).done
    viewer.step()
    assert answer.result(5) is True, "the frame of a step is shown"
    viewer.show(one())
    answer = later(viewer.ready)
    assert not concurrent.futures.wait([answer], 0.2).done, "one step only"
    viewer.resume()
    answer.result(5)
    time.sleep(1.2 * PERIOD)
    assert later(viewer.ready).result(5) is True


def test_closing_lets_a_paused_run_go_on(viewer):
    viewer.pause()
    answer = later(viewer.ready)
    assert not concurrent.futures.wait([answer], 0.1).done
    viewer.close()
    assert answer.result(5) is False
    viewer.take(lambda: pytest.fail("nobody looks on any more"))
    viewer.close()


def test_what_cannot_be_drawn_is_reported_once_and_the_rest_is_drawn(viewer, reports):
    def broken():
        raise RuntimeError("device is gone")

    viewer.take(broken)
    viewer.take(broken)
    viewer.show(one())
    assert reports == ["RuntimeError: device is gone"]
    assert viewer._scene.num_points == HEIGHT * WIDTH


def test_a_report_that_fails_does_not_end_the_drawing(capsys):
    def refuse(problem):
        raise ValueError("not now")

    with Viewer("127.0.0.1", 0, report=refuse) as viewer:
        viewer.take(lambda: 1 / 0)
        viewer.show(one())
        assert viewer._scene.num_points == HEIGHT * WIDTH
    said = "ZeroDivisionError: division by zero (which could not be reported: ValueError: not now)"
    assert said in capsys.readouterr().err


def test_what_was_taken_before_the_end_is_drawn(viewer):
    gate = threading.Event()
    viewer.take(lambda: (gate.wait(10), one())[1])
    viewer.take(lambda: snapshot([pose()] * 2, {1: wall(1)}))
    closing = later(viewer.close)
    gate.set()
    closing.result(10)
    assert viewer._scene.num_points == 2 * HEIGHT * WIDTH


def test_points_are_drawn_where_they_are_in_the_world(viewer):
    rng = np.random.default_rng(0)
    rotation = rng.normal(size=4)
    rotation /= np.linalg.norm(rotation)
    poses = [pose(), [*rotation, 1.0, -2.0, 3.0, 1.7]]
    views = {0: wall(0), 1: wall(1)}
    viewer.show(snapshot([pose(), pose()], views))
    viewer.show(snapshot(poses, {}))  # as after the closing of a loop
    for slot, row in enumerate(poses):
        frame, points = (node(viewer, f"/keyframes/{slot}{x}") for x in ("", "/points"))
        R = viser.transforms.SO3(frame.wxyz).as_matrix()
        drawn = points.scale * points.points.astype(np.float64) @ R.T + frame.position
        expected = np.asarray(
            Sim3(jnp.array(row, jnp.float32)).apply(jnp.asarray(views[slot].points))
        )
        assert frame.visible and len(drawn) == len(expected)
        # In any order; half precision has 11 bits.
        order = [np.lexsort(x.round(2).T) for x in (views[slot].points, points.points)]
        np.testing.assert_allclose(drawn[order[1]], expected[order[0]], atol=0.01)
        assert (points.colors == views[slot].image[0, 0]).all()


def test_only_one_submap_is_drawn(viewer):
    views = {slot: wall(slot) for slot in range(4)}
    ends = np.array([[0, 1], [1, 2], [2, 3], [0, 3]], np.int32)
    apart = snapshot(
        [pose(position=(slot, 0, 0)) for slot in range(4)],
        views,
        submaps=np.array([0, 0, 2, 2], np.int32),
        submap=2,
        links=ends,
        is_loop_link=np.array([False, False, True, False]),
    )
    viewer.show(apart)
    visible = [node(viewer, f"/keyframes/{slot}").visible for slot in range(4)]
    assert visible == [False, False, True, True]
    assert node(viewer, "/links/tracking") is None
    np.testing.assert_array_equal(node(viewer, "/links/loop").points, [[[2, 0, 0], [3, 0, 0]]])
    assert viewer._scene.num_points == 2 * HEIGHT * WIDTH


def test_no_more_points_are_drawn_than_asked_for():
    limit = 5000
    with Viewer("127.0.0.1", 0, max_points=limit, min_confidence=2.0) as viewer:
        for count in (1, 2, 5):
            views = {slot: wall(slot) for slot in range(count)}
            viewer.show(snapshot([pose()] * count, views))
            assert limit / 4 < viewer._scene.num_points <= limit
        viewer.show(snapshot([pose()] * 5, {0: wall(0, confidence=1.9)}))
        assert node(viewer, "/keyframes/0/points") is None
        assert node(viewer, "/keyframes/1/points") is not None
    assert halvings_for([7, 9], 16) == 0 and halvings_for([7, 9], 15) == 1


def test_a_lost_camera_is_not_drawn(viewer):
    viewer.show(one())
    assert node(viewer, "/camera").visible
    viewer.show(one(pose=None))
    assert not node(viewer, "/camera").visible


def received(connection) -> int:
    """Bytes that come before nothing comes for a while."""
    total = 0
    while True:
        try:
            total += len(connection.recv(timeout=0.4))
        except TimeoutError:
            return total


def test_only_what_has_changed_is_sent_again(viewer):
    """As a browser receives it."""
    from websockets.sync.client import connect

    poses = [pose(position=(slot, 0, 0)) for slot in range(3)]
    cloud = HEIGHT * WIDTH * (3 * 2 + 3)
    with connect(
        f"ws://127.0.0.1:{viewer.port}",
        subprotocols=[f"viser-v{viser.__version__}"],  # type: ignore[list-item]
        compression=None,
        max_size=None,
    ) as browser:
        received(browser)
        viewer.show(snapshot(poses, {slot: wall(slot) for slot in range(3)}))
        assert received(browser) > 3 * cloud
        moved = [pose(0.1, (slot, 1, 0), 1.1) for slot in range(3)]
        viewer.show(snapshot(moved, {}))
        assert 0 < received(browser) < cloud / 3
        viewer.show(snapshot(moved, {2: wall(2)}))
        assert cloud < received(browser) < 1.5 * cloud


def test_pages_of_other_sites_are_refused(viewer):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    address = f"127.0.0.1:{viewer.port}"
    protocols = [f"viser-v{viser.__version__}"]
    with connect(f"ws://{address}", origin=f"http://{address}", subprotocols=protocols) as own:
        assert received(own) > 0
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://{address}", origin="http://elsewhere.example", subprotocols=protocols)


def test_the_legend_has_the_strokes_that_are_drawn(viewer):
    ends = np.array([[0, 1], [0, 2]], np.int32)
    views = {slot: wall(slot) for slot in range(3)}
    poses = [pose(position=(slot, 0, 0)) for slot in range(3)]
    viewer.show(snapshot(poses, views, links=ends, is_loop_link=np.array([False, True])))
    legend = viewer._panel._legend.content
    names = {"/path": "path", "/links/tracking": "tracking link", "/links/loop": "loop link"}
    seen = set()
    for line, what in names.items():
        drawn = node(viewer, line)
        color = tuple(int(c) for c in np.asarray(drawn.colors).reshape(-1, 3)[0])
        seen.add((color, drawn.thickness))
        swatch = legend.split(f"</span>{what}<")[0].rsplit("<span", 1)[1]
        assert f"height:{drawn.thickness:g}px;background:rgb{color}" in swatch
    assert len({color for color, _ in seen}) == len({width for _, width in seen}) == 3


def test_points_that_are_nowhere_are_left_out():
    view = wall(0)
    view.points[:3] = [[np.nan, 0, 1], [0, np.inf, 1], [0, 0, 1e6]]
    assert len(Cloud.of(view).points) == HEIGHT * WIDTH - 3
    empty = Cloud.of(dataclasses.replace(view, points=np.full_like(view.points, np.nan)))
    assert len(empty.points) == 0 and empty.high == 0


def test_of_a_large_keyframe_a_share_is_kept():
    count = 4 * KEPT
    cloud = Cloud.of(
        KeyframeView(
            frame_index=0,
            image=np.zeros((400, count // 400, 3), np.uint8),
            points=np.ones((count, 3), np.float32),
            confidence=np.ones(count, np.float32),
        )
    )
    assert len(cloud.points) == KEPT and cloud.share == 4


def test_the_frustum_has_the_cameras_field_of_view():
    lens = Lens.of(wall(0))
    assert lens.fov == pytest.approx(2 * np.arctan(HEIGHT / 2 / FOCAL), rel=1e-4)
    assert (lens.distance, lens.spacing) == pytest.approx((DEPTH, DEPTH / FOCAL), rel=1e-4)
    nothing = dataclasses.replace(wall(0), points=np.full_like(wall(0).points, np.nan))
    assert Lens.of(nothing).fov > 0


def test_the_overview_is_from_behind_and_above_and_shows_everything(viewer):
    turn = 0.5
    viewer.show(snapshot([pose(turn, (3, 0, 0)), pose(turn, (4, 0, 1))], {0: wall(0), 1: wall(1)}))
    home = viewer._home
    np.testing.assert_allclose(home.up, [0, -1, 0], atol=1e-5)
    ahead, first = np.array([np.sin(turn), 0, np.cos(turn)]), np.array([3, 0, 0])
    assert (home.position - first) @ ahead < 0 < (home.position - first) @ home.up
    direction = (home.look_at - home.position) / home.distance
    for seen in (first, first + DEPTH * ahead, np.array([4, 0, 1])):
        ray = (seen - home.position) / np.linalg.norm(seen - home.position)
        assert ray @ direction > np.cos(np.radians(75 / 2)), "within the browser's field of view"


def test_depth_is_shown_from_red_to_blue_and_unknown_in_grey():
    depth = np.array([[1.0, 5.0, np.nan]], np.float32)
    near, far, unknown = depth_picture(depth)[0].astype(int)
    assert near[0] > near[2] and far[2] > far[0] and unknown.tolist() == [128] * 3
    assert (depth_picture(np.full((2, 2), np.nan, np.float32)) == 128).all()


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SourceError, match=f"127.0.0.1:{port}: another program listens there"):
            Viewer("127.0.0.1", port)


@pytest.mark.parametrize("where", [("no.such.host.invalid", 0), ("127.0.0.1", 70000)])
def test_an_address_that_cannot_be_is_refused(where):
    with pytest.raises(SourceError, match=f"{where[0]}:{where[1]}: "):
        Viewer(*where)


def test_without_viser_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(SourceError, match=r"pip install 'mast3r-slam-jax\[viewer\]'"):
        Viewer("127.0.0.1", 0)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "walk"
    made_up().save(folder, keep_map=False)
    return folder


def test_view_writes_one_page(results, tmp_path, capsys):
    page = tmp_path / "map.html"
    assert main(["view", str(results), "--html", str(page), "--submap", "3"]) == 0
    text = page.read_text()
    assert "__VISER_EMBED_DATA__" in text and 'src="http' not in text
    said = "".join(capsys.readouterr().out.split())  # lines break anywhere, after a path's length
    assert f"{page}:openit" in said


def test_view_serves_until_it_is_interrupted(results, capsys, monkeypatch):
    def interrupted(seconds):
        url = capsys.readouterr().out.split("open ")[1].split()[0]
        host, port = url.removeprefix("http://").split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        raise KeyboardInterrupt

    monkeypatch.setattr("slam.cli.view.time.sleep", interrupted)
    assert main(["view", str(results), "--port", "0"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["RESULTS", "--submap", "1"], "--submap 1: .*no submap has the number 1"),
        (["RESULTS", "--port", "70000"], "localhost:70000: "),
    ],
)
def test_view_refuses_in_one_sentence(results, arguments, message, capsys):
    arguments = [str(results) if a == "RESULTS" else a for a in arguments]
    assert main(["view", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
