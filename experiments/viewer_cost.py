"""What a viewer costs the run that it looks at.

    python -m experiments.viewer_cost [--frames 100] [--repeats 7]

One walk through a procedural room is reconstructed with nobody looking on; with a viewer that no
browser has opened; with one whose map is received, but not drawn, by another process, as if the
browser were on another machine; and with Chromium, without a window and without a GPU, drawing on
the processors that the run needs too. They take turns, so that a disturbance hits all alike. Prints
milliseconds a frame after the first, those that the process of the run and the viewer had of all
processors, and how many times they are those of the run beside it that nobody looked at: medians,
the least and the most. The first say what the user waits, and swing with whatever else the machine
does; the second what a viewer needs.
"""

import contextlib
import dataclasses
import importlib.util
import shutil
import statistics
import subprocess
import sys
import time
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

        def milliseconds(viewer: Viewer | None) -> tuple[float, float]:
            begin = time.process_time()
            result = slam.run(frames, prior, stepper=stepper, observer=viewer)
            processors = time.process_time() - begin
            return 1e3 / result.timing["fps_after_first_frame"], 1e3 * processors / len(frames)

        kinds = (NOBODY, UNOPENED, RECEIVED, OPENED)
        if chromium_path() is None:
            print("no browser: Chromium or playwright is not installed")
            kinds = (NOBODY, UNOPENED, RECEIVED)
        with Viewer("127.0.0.1", 0) as viewer:
            milliseconds(viewer)  # compiles all
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
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


def report(times: Mapping[str, Sequence[tuple[float, float]]]) -> Iterator[str]:
    """Lines of a table of milliseconds and processors' milliseconds [repeats, 2] by kind."""
    yield f"{'looking on':<14}{'ms a frame':>11}{'times':>7}{'':>15}{'CPU ms':>9}{'times':>7}"
    for kind, each in times.items():
        line = f"{kind:<14}"
        for values, nobody, width in zip(
            zip(*each, strict=True), zip(*times[NOBODY], strict=True), (11, 9), strict=True
        ):
            ratios = [a / b for a, b in zip(values, nobody, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            line += f"{statistics.median(values):>{width}.1f}{statistics.median(ratios):>7.2f}"
            line += f"{spread:>15}"
        yield line


if __name__ == "__main__":
    sys.exit(tyro.cli(ViewerCost, description=__doc__).execute())
