"""``mast3r-slam view``: the results of a run in the browser."""

import dataclasses
import pathlib
import time
from typing import Annotated

import tyro
from rich.console import Console

from slam.cli.options import File
from slam.cli.session import say
from slam.io.atomic import atomic_write
from slam.io.frames import SourceError
from slam.reconstruction import Reconstruction


@dataclasses.dataclass(frozen=True)
class View:
    """Look at the results of a run in the browser."""

    folder: tyro.conf.Positional[Annotated[pathlib.Path, tyro.conf.arg(metavar="FOLDER")]]
    """Results of a run."""
    port: int = 8080
    """Where the page is served. If the browser is on another machine, forward the port to there:
    `ssh -L 8080:localhost:8080 THIS_MACHINE`."""
    host: str = "localhost"
    """Address to serve at. With `0.0.0.0` everybody in the network can look."""
    min_confidence: float = 1.5
    """Of the points shown at first."""
    max_points: int = 400_000
    """Shown at most; more are slow on a phone."""
    submap: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the largest)")
    ] = None
    """Which piece of a map whose pieces were never joined."""
    html: File = None
    """Write one page that shows the map without a server, and serve nothing."""

    def execute(self) -> int:
        """Show the results; returns the exit status."""
        result = Reconstruction.load(self.folder)
        if not result.num_keyframes:
            raise SourceError(f"{self.folder}: has no keyframe, so there is nothing to see")
        try:
            snapshot = result.snapshot(self.submap)
        except ValueError as error:
            raise SourceError(f"--submap {self.submap}: {error}") from None
        from slam.viewer import Viewer

        console = Console(highlight=False)
        to_file = self.html is not None
        with Viewer(
            "127.0.0.1" if to_file else self.host,
            0 if to_file else self.port,
            live=False,
            min_confidence=self.min_confidence,
            max_points=self.max_points,
        ) as viewer:
            viewer.show(snapshot)
            if self.html is not None:
                with atomic_write(self.html) as file:
                    file.write(viewer.html().encode())
                say(console, f"{self.html}: open it in any browser")
                return 0
            say(console, f"{result.name}: {result.verdict()}")
            say(console, f"open {viewer.url} in a browser; Ctrl-C ends it", style="bold")
            say(console, f"from another machine: ssh -L {viewer.port}:localhost:{viewer.port} HOST")
            try:
                while True:
                    time.sleep(3600)
            except KeyboardInterrupt:
                return 0
