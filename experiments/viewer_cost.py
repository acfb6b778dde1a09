"""What a viewer costs the run that it looks at.

    python -m experiments.viewer_cost [--frames 100] [--repeats 7]

One walk through a procedural room is reconstructed with nobody looking on; with a viewer that no
browser has opened; with one whose map is received, but not drawn, by another process, as if the
browser were on another machine; and with Chromium, without a window and without a GPU, drawing on
the processors that the run needs too. They take turns, so that a disturbance hits all alike. Prints
milliseconds a frame after the first, and how many times those of the run beside it that nobody
looked at: medians, and the least and the most.
"""

import contextlib
import dataclasses
import importlib.util
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import tyro

import slam
from slam.io.procedural import parse_procedural
from slam.priors import RenderedGeometryPrior
from slam.stepper import Stepper
from slam.viewer import Viewer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NOBODY, UNOPENED = "nobody", "viewer"
RECEIVED, OPENED = "map received", "browser draws"


@dataclasses.dataclass(frozen=True)
class ViewerCost:
    """Time runs with and without a viewer."""

    frames: int = 100
    """Length of the walk."""
    size: tuple[int, int] = (128, 96)
    """Width and height of the images."""
    repeats: int = 7
    """Runs of each kind."""

    def execute(self) -> int:
        """Returns 0."""
        width, height = self.size
        frames = list(
            parse_procedural(f"procedural:room?seed=3&frames={self.frames}&size={width}x{height}")
        )
        stepper = Stepper(slam.SlamConfig(size=max(self.size)))
        prior = RenderedGeometryPrior()

        def milliseconds(viewer: Viewer | None) -> float:
            result = slam.run(frames, prior, stepper=stepper, observer=viewer)
            return 1e3 / result.timing["fps_after_first_frame"]

        kinds = (NOBODY, UNOPENED, RECEIVED, OPENED)
        if chromium_path() is None:
            print("no browser: Chromium or playwright is not installed")
            kinds = (NOBODY, UNOPENED, RECEIVED)
        with Viewer("127.0.0.1", 0) as viewer:
            milliseconds(viewer)  # compiles all
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(self.repeats):
            for place in range(len(kinds)):
                kind = kinds[(repeat + place) % len(kinds)]
                with looking_on(kind) as viewer:
                    times[kind].append(milliseconds(viewer))
        print("\n".join(report(times)))
        return 0


@contextlib.contextmanager
def looking_on(kind: str) -> Iterator[Viewer | None]:
    """The viewer of a run, shown by a browser if it is to be; None for ``NOBODY``."""
    if kind == NOBODY:
        yield None
        return
    with contextlib.ExitStack() as stack:
        viewer = stack.enter_context(Viewer("127.0.0.1", 0))
        if kind == RECEIVED:
            stack.enter_context(receiver(viewer))
        elif kind == OPENED:
            page = stack.enter_context(chromium()).new_page()
            page.goto(viewer.url)
            page.get_by_text("waiting for the first frame").wait_for()
        yield viewer


@contextlib.contextmanager
def receiver(viewer: Viewer) -> Iterator[subprocess.Popen]:
    """A process that is sent what a browser would be, and forgets it."""
    address, protocol = f"ws://{viewer.host}:{viewer.port}", f"viser-v{metadata.version('viser')}"
    command = [sys.executable, "-c", _RECEIVE, address, protocol]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():  # once it has been sent something
            raise RuntimeError(f"{address}: no map is received there")
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"{address}: the map was received no longer")
        process.terminate()


_RECEIVE = """
import sys
from websockets.sync.client import connect

address, protocol = sys.argv[1:]
with connect(address, subprotocols=[protocol], max_size=None) as browser:
    browser.recv()
    print(flush=True)
    for _ in browser:
        pass
"""


def chromium_path() -> str | None:
    """Where Chromium is; None where it or playwright is not installed."""
    if importlib.util.find_spec("playwright") is None:
        return None
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextlib.contextmanager
def chromium() -> "Iterator[Browser]":
    """Chromium without a window, which draws without a GPU; where ``chromium_path`` is."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=_ARGUMENTS)
        yield browser
        browser.close()


_ARGUMENTS = (
    "--headless=new --no-sandbox --use-gl=angle --use-angle=swiftshader "
    "--enable-unsafe-swiftshader --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()


def report(times: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Lines of a table of milliseconds [repeats] by kind."""
    yield f"{'looking on':<20}{'ms a frame':>12}{'least':>8}{'most':>8}{'times':>8}{'':>14}"
    for kind, each in times.items():
        ratios = [a / b for a, b in zip(each, times[NOBODY], strict=True)]
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        yield (
            f"{kind:<20}{statistics.median(each):>12.1f}{min(each):>8.1f}{max(each):>8.1f}"
            f"{statistics.median(ratios):>8.3f}  {spread}"
        )


if __name__ == "__main__":
    sys.exit(tyro.cli(ViewerCost, description=__doc__).execute())
