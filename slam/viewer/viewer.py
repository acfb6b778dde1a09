"""A map in the browser while it grows, drawn in a thread of its own.

Built on viser: 46 MB with all it needs, where rerun has 660; it listens only where it is told to;
its page asks nothing of the internet (a test sees to that); and its controls fit a phone's width.
"""

import collections
import contextlib
import errno
import http
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from slam.io.frames import SourceError
from slam.snapshot import Snapshot
from slam.viewer.panel import Actions, Panel
from slam.viewer.scene import Scene, Settings, Viewpoint

if TYPE_CHECKING:
    import viser

PERIOD = 0.2
"""Seconds between snapshots at least: as often as an eye follows a growing map, and a snapshot
costs the run a copy of the last keyframe's points."""

REST = 20.0
"""How many times as long as a snapshot took of a processor no other is taken: so drawing takes a
twentieth of one at most, however large the map is."""

_PARTING = 0.3
"""Seconds in which browsers still get what was drawn last; viser sends it within a sixtieth."""

_RECENT = 20
"""Frames over which their rate is told."""


class Viewer:
    """Shows snapshots in the browser; an ``Observer`` of a run.

    Args:
        host: name or address to listen at. Anybody who can reach it sees the map, and can pause
            the run.
        port: to listen at; 0 for any that is free.
        live: whether there is a run that can be paused.
        min_confidence: of the points shown at first.
        max_points: shown at most.
        report: told, in a sentence, what could not be drawn; by default it is printed to stderr.

    Raises:
        SourceError: nothing can listen there, or viser is not installed.
    """

    def __init__(
        self,
        host: str = "localhost",
        port: int = 8080,
        *,
        live: bool = True,
        min_confidence: float = 1.5,
        max_points: int = 400_000,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._server = _listen(host, port)
        self.host, self.port = host, self._server.get_port()
        self._report = report or (lambda problem: print(f"viewer: {problem}", file=sys.stderr))
        self._reported: set[str] = set()
        self._live = live
        self._scene = Scene(self._server)
        self._snapshot: Snapshot | None = None
        self._home: Viewpoint | None = None
        self._home_submap: int | None = None
        # All below is guarded by, and told of by, this.
        self._changed = threading.Condition()
        self._waiting: collections.deque[Callable[[], Snapshot]] = collections.deque()
        self._stale = self._drawing = self._closed = self._paused = False
        self._lost_sight: set[int] = set()
        """Numbers of the browsers that want the overview."""
        self._steps = 0
        self._last = -PERIOD
        self._rest = 0.0
        """Seconds between this snapshot and the next one at least, for what it took."""
        self._frame_times: collections.deque[float] = collections.deque(maxlen=_RECENT)
        actions = Actions(self._redraw, self._look_over, self.pause, self.step, self.resume)
        initial = Settings(min_confidence=min_confidence, max_points=max_points)
        self._panel = Panel(self._server, live, initial, actions)
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(self._panel.forget)
        self._worker = threading.Thread(target=self._work, name="viewer", daemon=True)
        self._worker.start()

    @property
    def url(self) -> str:
        """Where the browser finds it."""
        return f"http://{self.host}:{self.port}"

    def ready(self) -> bool:
        """Whether to take a snapshot of the frame that was just done; waits while paused."""
        with self._changed:
            if self._paused:
                self._frame_times.clear()
                self._changed.wait_for(
                    lambda: self._closed or not self._paused or (self._steps and self._is_idle)
                )
            now = time.monotonic()
            self._frame_times.append(now)
            if self._closed:
                return False
            if self._paused:
                self._steps -= 1
                return True
            return self._is_idle and now - self._last >= max(PERIOD, self._rest)

    def take(self, snapshot: Callable[[], Snapshot]) -> None:
        """Have a snapshot fetched and drawn soon."""
        with self._changed:
            if self._closed:
                return
            self._last = time.monotonic()
            self._waiting.append(snapshot)
            self._changed.notify_all()

    def show(self, snapshot: Snapshot) -> None:
        """Draw a snapshot, and wait until that is done."""
        self.take(lambda: snapshot)
        self.wait_until_drawn()

    def wait_until_drawn(self, timeout: float = 60.0) -> bool:
        """Wait until all that was taken is sent to the browser; whether it was in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or self._is_idle, timeout)

    def pause(self) -> None:
        """Let the run wait after its next frame."""
        self._set_paused(True)

    def resume(self) -> None:
        """Let the run go on."""
        self._set_paused(False)

    def step(self) -> None:
        """Let a run that waits show the frame it waits after, and do the next one."""
        with self._changed:
            self._steps = 1
            self._changed.notify_all()

    def html(self) -> str:
        """One page that shows the scene as it is now, without a server and the controls."""
        return self._server.scene.as_html()

    def close(self) -> None:
        """Draw what was taken and stop listening; a run that waits goes on, without being shown."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._worker.join(timeout=10)
        if self._clients():
            time.sleep(_PARTING)
        with _silent():
            self._server.stop()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @property
    def _is_idle(self) -> bool:
        return not (self._waiting or self._drawing)

    def _set_paused(self, paused: bool) -> None:
        with self._changed:
            self._paused, self._steps = paused, 0
            self._changed.notify_all()
        if self._live:
            self._panel.show_paused(paused)

    def _redraw(self) -> None:
        with self._changed:
            self._stale = True
            self._changed.notify_all()

    def _look_over(self, client: "viser.ClientHandle") -> None:
        with self._changed:
            self._stale = True
            self._lost_sight.add(client.client_id)
            self._changed.notify_all()

    def _work(self) -> None:
        """Draw what comes, one after the other."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._stale)
                if self._closed and not self._waiting:
                    return
                make = self._waiting.popleft() if self._waiting else None
                lost_sight, self._lost_sight = self._lost_sight, set()
                self._stale, self._drawing = False, True
            begin = time.thread_time()
            try:
                self._draw(make() if make else None, lost_sight)
            except Exception as error:  # a run must not end because it cannot be looked at
                self._tell(error)
            finally:
                with self._changed:
                    self._rest = REST * (time.thread_time() - begin)
                    self._drawing = False
                    self._changed.notify_all()

    def _draw(self, snapshot: Snapshot | None, lost_sight: set[int]) -> None:
        self._scene.draw(snapshot, self._panel.settings)
        if snapshot is not None:
            self._snapshot = snapshot
        if self._snapshot is None:
            return
        scene = self._scene
        self._panel.show(self._snapshot, scene.num_points, scene.highest_confidence, self._fps())
        overview, behind = scene.overview(), scene.behind()
        clients = self._clients()
        lost = [client for client in clients if client.client_id in lost_sight]
        if overview is not None and (
            self._home is None
            or self._snapshot.submap != self._home_submap  # which is another world
            # Nobody has chosen a view, so that it may change as the map grows.
            or (
                (lost or overview.differs(self._home))
                and all(client in lost or self._is_home(client) for client in clients)
            )
        ):
            self._set_home(overview, self._snapshot.submap)
        elif overview is not None:
            for client in lost:
                _move(client, overview)
        if behind is not None:
            for client in filter(self._panel.follows, clients):
                _move(client, behind)

    def _clients(self) -> list["viser.ClientHandle"]:
        return list(self._server.get_clients().values())

    def _is_home(self, client: "viser.ClientHandle") -> bool:
        home = self._home
        if home is None:
            return False
        away = np.linalg.norm(client.camera.position - _position(client, home))
        return bool(away < 0.01 * home.distance)

    def _set_home(self, home: Viewpoint, submap: int) -> None:
        """Look at the scene from ``home``, and let those who come later begin there."""
        self._home, self._home_submap = home, submap
        self._server.scene.set_up_direction(home.up)
        self._server.initial_camera.position = home.position
        self._server.initial_camera.look_at = home.look_at
        for client in self._clients():
            _move(client, home)

    def _welcome(self, client: "viser.ClientHandle") -> None:
        """A browser begins at home by itself; see that a narrow window then shows all of it."""

        def step_back(camera: "viser.CameraHandle") -> None:
            home = self._home
            if home is not None and np.allclose(camera.position, home.position, atol=1e-4):
                _move(client, home)

        if client.camera.aspect < 1:
            client.camera.on_update(step_back)
            step_back(client.camera)
        self._panel.welcome(client)

    def _tell(self, error: Exception) -> None:
        """Once, and come back even from someone who does not want to hear of it."""
        problem = f"{type(error).__name__}: {error}"
        try:
            self._panel.show_problem(problem)
            if problem not in self._reported:
                self._reported.add(problem)
                self._report(problem)
        except Exception as another:
            why = f"{type(another).__name__}: {another}"
            print(f"viewer: {problem} (which could not be reported: {why})", file=sys.stderr)

    def _fps(self) -> float | None:
        with self._changed:
            times = list(self._frame_times)
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 2 else None


def _position(client: "viser.ClientHandle", to: Viewpoint) -> np.ndarray:
    """Where one browser looks from: further back in a window that is narrow."""
    back = min(2.0, max(1.0, 1 / client.camera.aspect))
    return to.look_at + back * (to.position - to.look_at)


def _move(client: "viser.ClientHandle", to: Viewpoint) -> None:
    """Move one browser's view."""
    with client.atomic():
        client.camera.up_direction = to.up
        client.camera.position = _position(client, to)
        client.camera.look_at = to.look_at


def _listen(host: str, port: int) -> "viser.ViserServer":
    """A server without any scene.

    Raises:
        SourceError: see ``Viewer``.
    """
    try:
        import viser
    except ImportError:
        raise SourceError(
            "the viewer needs viser, which is not installed: pip install 'mast3r-slam-jax[viewer]'"
        ) from None
    # A browser may leave while it is sent something.
    warnings.filterwarnings("ignore", r"Queued a \w+ on a closed connection")
    address = _free_address(host, port)
    with _STARTING, _silent(), _own_pages_only():
        server = viser.ViserServer(address, port, verbose=False)
        if port and server.get_port() != port:  # taken in the meantime, and the next one used
            server.stop()
            raise SourceError(_TAKEN.format(host=host, port=port))
    return server


_STARTING = threading.Lock()
"""Held while settings of the process are others so that a server can start."""

_TAKEN = "{host}:{port}: another program listens there; choose another port with --port"


def _free_address(host: str, port: int) -> str:
    """The numeric address of ``host``, at which nothing listens yet.

    Of several the first that can be used, in particular the one of ``localhost`` where the other
    version of the protocol is off: viser would go through ports in search of one forever.

    Raises:
        SourceError: there is no such address, or it is in use.
    """
    if not 0 <= port < 2**16:  # which the system would take modulo that
        raise SourceError(f"{host}:{port}: ports are numbers from 0 to 65535")
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SourceError(f"{host}:{port}: no address to listen at ({error})") from None
    problem: OSError | None = None
    for family, kind, protocol, _, address in sorted(candidates, key=lambda c: c[0]):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                return str(address[0])
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise SourceError(_TAKEN.format(host=host, port=port)) from None
                problem = problem or error
    raise SourceError(f"{host}:{port}: cannot listen there ({problem})")


@contextlib.contextmanager
def _own_pages_only() -> Iterator[None]:
    """Let a server that is started here answer no page of another site.

    Browsers let every page connect to every address, this machine's own too; it is for the server
    to look where the page is from. viser does not, and passes no such option on.
    """
    from websockets.asyncio import server

    serve = server.serve

    def guarded(*arguments: Any, process_request: Any, **options: Any) -> Any:
        def guard(connection: Any, request: Any) -> Any:
            origin = request.headers.get("Origin")
            if origin is None or urlsplit(origin).netloc == request.headers.get("Host"):
                return process_request(connection, request)
            return connection.respond(http.HTTPStatus.FORBIDDEN, "for its own page only\n")

        return serve(*arguments, process_request=guard, **options)

    server.serve = guarded  # type: ignore[misc]
    try:
        yield
    finally:
        server.serve = serve  # type: ignore[misc]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep viser from printing: what there is to say, the command line says."""
    import rich

    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
