"""The measurement of a viewer's cost: who takes turns with whom, and what is compared."""

import threading
import types

import pytest

from experiments import viewer_cost
from experiments.viewer_cost import NOBODY, UNOPENED, ViewerCost, receiver, report


def test_every_run_is_compared_with_the_one_beside_it_that_nobody_looked_at():
    watched = {NOBODY: [(10.0, 5.0), (40.0, 5.0), (20.0, 8.0)],
               UNOPENED: [(11.0, 10.0), (40.0, 5.0), (21.0, 12.0)]}  # fmt: skip
    _, nobody, viewer = report(watched)
    assert nobody.split() == ["nobody", *"20.0 1.00 1.00 to 1.00 5.0 1.00 1.00 to 1.00".split()]
    assert viewer.split() == ["viewer", *"21.0 1.05 1.00 to 1.10 10.0 1.50 1.00 to 2.00".split()]


@pytest.mark.slow
def test_kinds_take_turns(monkeypatch, capsys):
    pytest.importorskip("viser")
    watched = []

    def run(frames, prior, stepper, observer):
        watched.append(observer is not None)
        return types.SimpleNamespace(timing={"fps_after_first_frame": 40 if observer else 50})

    monkeypatch.setattr(viewer_cost.slam, "run", run)
    monkeypatch.setattr(viewer_cost, "chromium_path", lambda: None)
    assert ViewerCost(frames=1, size=(32, 32), repeats=2).execute() == 0
    assert watched == [True, False, True, True, True, True, False]
    lines = capsys.readouterr().out.splitlines()
    assert "1.25   1.25 to 1.25" in lines[3] and max(map(len, lines)) <= 80


def test_a_receiver_takes_all_that_it_is_sent_and_tells_if_it_does_not():
    """Much more than would wait on the way."""
    viser = pytest.importorskip("viser")
    from websockets.sync.server import serve

    sent, over = threading.Event(), threading.Event()

    def send(browser):
        for _ in range(64):
            browser.send(bytes(2**20))
        sent.set()
        over.wait(60)

    protocols = [f"viser-v{viser.__version__}"]
    with serve(send, "127.0.0.1", 0, subprotocols=protocols) as server:
        threading.Thread(target=server.serve_forever).start()
        host, port = server.socket.getsockname()
        viewer = types.SimpleNamespace(host=host, port=port)
        with receiver(viewer):
            assert sent.wait(30)
        with pytest.raises(RuntimeError, match="received no longer"):
            with receiver(viewer) as process:
                over.set()
                process.wait(30)
    with pytest.raises(RuntimeError, match="no map is received"):
        with receiver(viewer):
            pass
