"""A web server on this machine that can be told to misbehave."""

import contextlib
import dataclasses
import http.server
import threading

import numpy as np

from weights_conversion.download import Published

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@dataclasses.dataclass
class Behaviour:
    """What the test server does; tests change it while it runs."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    ranges: bool = True
    if_range: bool = True
    cuts: list[int] = dataclasses.field(default_factory=list)
    """Each request takes one number from here and closes after that many bytes of the body."""
    status: int | None = None
    content_type: str = "application/octet-stream"
    lengthless: bool = False
    requests: list[dict[str, str]] = dataclasses.field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour

    def do_GET(self):
        b = self.behaviour
        b.requests.append(dict(self.headers))
        if b.status:
            self.send_error(b.status)
            return
        start = 0
        wanted = self.headers.get("Range")
        current = not b.if_range or self.headers.get("If-Range", b.etag) == b.etag
        if wanted and b.ranges and current:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(b.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(b.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            last = len(b.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(b.content)}")
        else:
            self.send_response(200)
        body = b.content[start:]
        self.send_header("Content-Type", b.content_type)
        if not b.lengthless:
            self.send_header("Content-Length", str(len(body)))
        if b.etag:
            self.send_header("ETag", b.etag)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client may have heard enough
            self.wfile.write(body[: b.cuts.pop(0)] if b.cuts else body)

    def log_message(self, *_args):
        pass


@contextlib.contextmanager
def serving():
    """(behaviour, published file on a local server)."""
    behaviour = Behaviour()
    handler = type("BoundHandler", (Handler,), {"behaviour": behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{httpd.server_address[1]}/w.pth"
            yield behaviour, Published(url, "w.pth", "test weights")
        finally:
            httpd.shutdown()
            thread.join()
