"""The viewer in a browser without a screen or a GPU: what people see."""

import concurrent.futures
import contextlib
import io
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from slam.reconstruction import Reconstruction
from tests.slam import rim
from tests.slam.viewer.maps import pose, snapshot, wall

pytest.importorskip("viser", reason="viser is not installed: pip install '.[viewer]'")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from experiments.viewer_cost import chromium, chromium_path
from slam.viewer import Viewer

WALLS = [pose(), pose(0.9, (0.5, 0.0, 0.0))]
DESKTOP, PHONE = (900, 500), (390, 844)


@pytest.fixture(scope="module")
def browser():
    if chromium_path() is None:
        pytest.skip("chromium is not installed")
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser):
    """Opens pages, which must have no errors and ask nobody but this machine."""
    problems = []
    local = re.compile(r"(http|ws)://(localhost|127\.0\.0\.1):|file:|data:|blob:")
    with contextlib.ExitStack() as stack:

        def opened(size=DESKTOP):
            context = stack.enter_context(
                contextlib.closing(
                    browser.new_context(viewport=dict(zip(("width", "height"), size, strict=True)))
                )
            )
            page = context.new_page()
            page.on("console", note)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", lambda r: None if local.match(r.url) else problems.append(r.url))
            return page

        def note(said):
            # A page looks for its server again when a run has ended.
            if said.type == "error" and "ERR_CONNECTION_REFUSED" not in said.text:
                problems.append(said.text)

        yield opened
    assert problems == []


@pytest.fixture
def page(open_page):
    return open_page()


def picture(page, x=0, y=160, width=560, height=340) -> np.ndarray:
    """int [H, W, 3]: by default left of the controls, and below a warning that there is no GPU."""
    shot = page.screenshot(clip={"x": x, "y": y, "width": width, "height": height})
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def counts(page) -> tuple[int, int, int]:
    """Pixels that are clearly red, green, blue."""
    rgb = picture(page)
    others = np.stack([np.delete(rgb, channel, 2).max(-1) for channel in range(3)], -1)
    return tuple(int(n) for n in ((rgb - others) > 100).sum((0, 1)))


def is_dark(page) -> bool:
    return bool(picture(page, 300, 0, 4, 4).mean() < 100)


def set_confidence(page, value):
    confidence = page.get_by_role("textbox").first
    confidence.fill(value)
    confidence.press("Enter")


def shown(page) -> tuple[int, int]:
    """Pixels that are not white, and how many colours they have."""
    colors = picture(page).reshape(-1, 3)
    colors = colors[colors.min(axis=1) < 200]
    return len(colors), len(np.unique(colors, axis=0))


def until(page, condition, look=counts, seconds=10.0):
    """Wait for a picture in which ``look`` finds what ``condition`` holds of."""
    for _ in range(int(seconds / 0.2)):
        seen = look(page)
        if condition(*seen):
            return seen
        page.wait_for_timeout(200)
    raise AssertionError(f"{look.__name__}: {seen}")


@pytest.mark.slow
def test_a_map_grows_and_obeys_its_controls(page):
    """Of two keyframes, a red one of confidence 3 and a green one of confidence 4."""
    with Viewer("127.0.0.1", 0) as viewer, concurrent.futures.ThreadPoolExecutor(1) as run:
        page.goto(viewer.url)
        page.get_by_text("waiting for the first frame").wait_for()
        assert counts(page)[:2] == (0, 0)
        viewer.show(snapshot(WALLS[:1], {0: wall(0)}))
        until(page, lambda red, green, blue: red > 2000 and not green)
        page.get_by_text("tracking", exact=True).wait_for()
        viewer.show(snapshot(WALLS, {1: wall(1, confidence=4.0)}))
        until(page, lambda red, green, blue: red > 1000 and green > 1000)
        page.get_by_text("2 keyframes, 6,144 points").wait_for()

        page.get_by_role("checkbox", name="Keyframes").click()  # their pictures have the colours
        set_confidence(page, "3.5")
        until(page, lambda red, green, blue: not red and green > 1000)
        set_confidence(page, "1")
        until(page, lambda red, green, blue: red > 1000 and green > 1000)
        viewer.show(snapshot([WALLS[0], pose(0.9, (0.5, 0.0, 1e4))], {}))  # poses only: it is gone
        until(page, lambda red, green, blue: green < 20)

        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Step").wait_for()
        answer = run.submit(viewer.ready)
        assert not concurrent.futures.wait([answer], 0.5).done
        page.get_by_role("button", name="Step").click()
        assert answer.result(5) is True
        answer = run.submit(viewer.ready)
        assert not concurrent.futures.wait([answer], 0.5).done
        page.get_by_role("button", name="Resume").click()
        answer.result(5)
        page.get_by_role("button", name="Pause").wait_for()


@pytest.mark.slow
def test_every_browser_has_its_own_light_and_view_and_a_phone_room_for_the_scene(open_page):
    with Viewer("127.0.0.1", 0) as viewer:
        viewer.show(snapshot(WALLS, {0: wall(0), 1: wall(1)}))
        desktop, phone = pages = open_page(), open_page(PHONE)
        for page in pages:
            page.goto(viewer.url)
            page.get_by_text("2 keyframes").wait_for()
        sheet = phone.get_by_text("2 keyframes")
        assert sheet.bounding_box()["y"] > 0.75 * PHONE[1]
        sheet.hover()
        phone.wait_for_timeout(400)
        assert sheet.bounding_box()["y"] < 0.6 * PHONE[1], "who touches it sees more of it"

        desktop.get_by_role("checkbox", name="Dark").last.click()
        desktop.wait_for_timeout(800)
        assert [is_dark(page) for page in pages] == [True, False]
        desktop.reload()
        desktop.get_by_text("2 keyframes").wait_for()
        desktop.wait_for_timeout(800)
        assert is_dark(desktop), "it remembers"

        before = [client.camera.position for client in viewer._clients()]
        phone.get_by_role("checkbox", name="Follow").click()
        phone.wait_for_timeout(800)
        after = [client.camera.position for client in viewer._clients()]
        assert [np.allclose(*both) for both in zip(before, after, strict=True)] == [False, True]


@pytest.mark.slow
def test_links_and_path_are_told_apart(page):
    """On three sides of a square the path runs along tracking links; on the fourth is a loop's."""
    walk = [pose(position=(x, 0.0, z)) for x, z in ((0, 0), (0, 4), (4, 4), (4, 0))]
    ends = np.array([[0, 1], [1, 2], [2, 3], [3, 0]], np.int32)
    with Viewer("127.0.0.1", 0) as viewer:
        page.goto(viewer.url)
        page.get_by_text("waiting for the first frame").wait_for()
        page.get_by_role("checkbox", name="Keyframes").click()
        views = {slot: wall(slot, confidence=0.0) for slot in range(4)}
        is_loop = np.arange(4) == 3
        viewer.show(snapshot(walk, views, links=ends, is_loop_link=is_loop, pose=None))
        until(page, lambda red, green, blue: red > 100)
        _, green, blue = np.moveaxis(picture(page), -1, 0)
        assert np.count_nonzero(blue - green > 40) > 500


RUN = (
    *(rim.URI, "--stride", str(rim.STRIDE), "--prior", "rendered", "--config.size", "128"),
    *("--config.keyframe-capacity", "4", "--viewer", "--viewer-port", "0"),
    *(f"--noise.{kind}=0" for kind in ("depth", "bias", "scale", "descriptor")),
)
"""The walk of ``rim``, whose programs are compiled once for all tests."""


@pytest.mark.slow
def test_a_run_is_looked_at_from_beginning_to_end(page, tmp_path):
    """The command itself, in a process of its own."""
    out = tmp_path / "out"
    settings = {
        "COLUMNS": "400",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }

    def wait_for(text) -> re.Match:
        page.get_by_text(re.compile(text)).wait_for(timeout=120_000)
        found = re.search(text, page.locator("body").inner_text())
        assert found is not None
        return found

    with subprocess.Popen(
        [sys.executable, "-m", "slam.cli", "run", *RUN, "--out", str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | settings,
    ) as run:
        try:
            page.goto(
                next(re.findall(r"http://\S+", line)[0] for line in run.stdout if "open " in line)
            )
            page.get_by_role("button", name="Pause").click()
            step = page.get_by_role("button", name="Step")
            step.click()
            number = int(wait_for(r"frame (\d+) of 14")[1])
            page.wait_for_timeout(600)
            assert int(wait_for(r"frame (\d+) of 14")[1]) == number < 5, "it is paused"
            while wait_for(r"(\d) keyframes?,")[1] == "1":
                step.click()
                number += 1
                wait_for(f"frame {number} of 14")
            assert number < 14 and run.poll() is None

            page.get_by_role("checkbox", name="Keyframes").click()
            drawn, _ = until(page, lambda pixels, colors: colors > 1000, shown)
            confidence = page.get_by_role("slider").first
            confidence.press("End")
            until(page, lambda pixels, colors: pixels < drawn / 2, shown)
            confidence.press("Home")
            until(page, lambda pixels, colors: pixels > 0.8 * drawn, shown)

            page.get_by_role("button", name="Resume").click()
            wait_for("frame 14 of 14")
            said = run.stdout.read()
            assert run.wait(timeout=120) == 0
        finally:
            run.kill()
    assert f"mast3r-slam view {out}\n" in said
    assert (out / "map.ply").stat().st_size > 10_000 and (out / "map").is_dir()
    wait_for(f"{Reconstruction.load(out).num_keyframes} keyframes,")


@pytest.mark.slow
def test_a_page_shows_the_map_without_a_server(page, tmp_path):
    with Viewer("127.0.0.1", 0, live=False) as viewer:
        viewer.show(snapshot(WALLS, {0: wall(0), 1: wall(1)}))
        (tmp_path / "map.html").write_text(viewer.html())
    page.goto(f"file://{tmp_path}/map.html")
    until(page, lambda red, green, blue: red > 1000 and green > 1000)
