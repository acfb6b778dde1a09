"""The viewer in a browser without a screen or a GPU: what people see."""

import concurrent.futures
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.slam.viewer.maps import pose, snapshot, wall

pytest.importorskip("viser", reason="viser is not installed: pip install '.[viewer]'")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

from slam.viewer import Viewer  # noqa: E402

ARGUMENTS = (
    "--headless=new --no-sandbox --use-gl=angle --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()
WALLS = [pose(), pose(0.9, (0.5, 0.0, 0.0))]


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that must have no errors and ask nobody but this machine."""
    page = browser.new_page(viewport={"width": 900, "height": 500})
    problems = []
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    local = ("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(local) else problems.append(r.url))
    yield page
    page.close()
    assert problems == []


def counts(page) -> tuple[int, int, int]:
    """Pixels left of the controls, and below a warning that there is no GPU, that are clearly red,
    green, blue."""
    clip = {"x": 0, "y": 160, "width": 560, "height": 340}
    rgb = np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")).astype(int)
    others = np.stack([np.delete(rgb, channel, 2).max(-1) for channel in range(3)], -1)
    return tuple(int(n) for n in ((rgb - others) > 100).sum((0, 1)))


def until(page, condition, seconds=10.0):
    """Wait for a picture of which ``condition(red, green, blue)`` holds."""
    for _ in range(int(seconds / 0.2)):
        seen = counts(page)
        if condition(*seen):
            return seen
        page.wait_for_timeout(200)
    raise AssertionError(f"seen: {seen} pixels of red, green, blue")


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
        confidence = page.get_by_role("textbox").first
        confidence.fill("3.5")
        confidence.press("Enter")
        until(page, lambda red, green, blue: not red and green > 1000)
        confidence.fill("1")
        confidence.press("Enter")
        until(page, lambda red, green, blue: red > 1000 and green > 1000)
        viewer.show(snapshot([WALLS[0], pose(0.9, (0.5, 0.0, 1e4))], {}))  # poses only: it is gone
        until(page, lambda red, green, blue: green < 20)

        def corner():
            shot = page.screenshot(clip={"x": 300, "y": 0, "width": 4, "height": 4})
            return np.asarray(Image.open(io.BytesIO(shot)).convert("L")).mean()

        assert corner() > 200
        page.get_by_role("checkbox", name="Dark").last.click()
        page.wait_for_timeout(800)
        assert corner() < 60

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


def test_a_page_shows_the_map_without_a_server(page, tmp_path):
    with Viewer("127.0.0.1", 0, live=False) as viewer:
        viewer.show(snapshot(WALLS, {0: wall(0), 1: wall(1)}))
        (tmp_path / "map.html").write_text(viewer.html())
    page.goto(f"file://{tmp_path}/map.html")
    until(page, lambda red, green, blue: red > 1000 and green > 1000)
