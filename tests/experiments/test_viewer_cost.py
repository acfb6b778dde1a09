"""The measurement of a viewer's cost: who takes turns with whom, and what is compared."""

import os
import pathlib
import subprocess
import sys
import types

import pytest

from experiments import viewer_cost
from experiments.viewer_cost import NOBODY, UNOPENED, ViewerCost, report

AUTOGROUP = pathlib.Path("/proc/self/autogroup")


def test_every_run_is_compared_with_the_one_beside_it_that_nobody_looked_at():
    _, nobody, viewer = report({NOBODY: [10.0, 40.0, 20.0], UNOPENED: [11.0, 40.0, 21.0]})
    assert nobody.split()[-6:] == ["10.0", "40.0", "1.000", "1.000", "to", "1.000"]
    assert viewer.split() == ["viewer", *"21.0 11.0 40.0 1.050 1.000 to 1.100".split()]


def test_kinds_take_turns(monkeypatch, capsys):
    pytest.importorskip("viser")
    watched = []

    def run(frames, prior, stepper, observer):
        watched.append(observer is not None)
        return types.SimpleNamespace(timing={"fps_after_first_frame": 40 if observer else 50})

    monkeypatch.setattr(viewer_cost.slam, "run", run)
    monkeypatch.setattr(viewer_cost, "chromium_path", lambda: None)
    assert ViewerCost(frames=1, size=(32, 32), repeats=2).execute() == 0
    assert watched == [True, False, True, True, False]
    assert "1.250  1.250 to 1.250" in capsys.readouterr().out


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="only Linux gives way like that")
def test_a_browser_that_yields_is_chromium_with_the_least_priority(tmp_path):
    script = f"import os; print(os.sched_getscheduler(0), open('{AUTOGROUP}').read())"
    command = viewer_cost.yielding(sys.executable, tmp_path)
    ran = subprocess.run([command, "-c", script], capture_output=True, start_new_session=True)
    assert ran.stdout.decode().split()[0] == str(os.SCHED_IDLE)
    assert ran.stdout.decode().split()[-1] == "19"
