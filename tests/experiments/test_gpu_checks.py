"""The command for a borrowed GPU: what it runs, what it leaves, and how it goes on."""

import json
import pathlib
import subprocess
from typing import ClassVar

import numpy as np
import pytest

from experiments import gpu_checks
from experiments.gpu_checks import GpuChecks


class Child:
    """Stands in for the process of a part."""

    hangs, crashes = ("network",), ("stages",)
    asked: ClassVar[list[str]] = []
    folder: ClassVar[pathlib.Path]

    def __init__(self, command, **rest):
        self.part = command[command.index("--parts") + 1]
        self.ended = False
        Child.asked.append(self.part)

    def wait(self, timeout=None):
        if self.part in self.hangs and not self.ended:
            raise subprocess.TimeoutExpired(self.part, timeout)
        if self.part in self.crashes:
            return 1
        figures = {"device": "a card", "ms": 1.0, "holds": self.part != "parity"}
        (Child.folder / f"{self.part}.json").write_text(json.dumps(figures))
        return 0

    def terminate(self):
        self.ended, self.part = True, "nothing"


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Which parts were begun; they take no time."""
    monkeypatch.setattr(gpu_checks.subprocess, "Popen", Child)
    monkeypatch.setattr(gpu_checks.shutil, "which", lambda name: "/usr/bin/" + name)
    Child.asked, Child.folder = [], tmp_path
    return Child.asked


def test_a_part_that_fails_or_hangs_costs_no_other_and_is_run_again(asked, tmp_path, capsys):
    parts = ("ceilings", "network", "stages", "memory")
    assert GpuChecks(tmp_path, parts=parts).execute() == 1
    assert asked == list(parts)
    said = capsys.readouterr().out
    assert "cut off" in said and "failed, see" in said and "  ms: 1" in said
    asked.clear()
    assert GpuChecks(tmp_path, parts=parts[:2]).execute() == gpu_checks.LEFT_OVER
    assert asked == ["network"]


def test_parity_that_does_not_hold_is_remembered(asked, tmp_path):
    for _ in range(2):
        assert GpuChecks(tmp_path, parts=("ceilings", "parity")).execute() == 1
    assert asked == ["ceilings", "parity"]


def test_what_is_not_a_number_is_wrong():
    good, bad = {"x": np.ones(3), "n": np.arange(4)}, {"x": np.array([1, np.nan, 1.0])}
    assert gpu_checks.difference(good, good) == (0, 0)
    assert gpu_checks.difference({**good, **bad}, good)[0] == np.inf
    assert gpu_checks.difference({**good, "n": np.array([0, 1, 2, 9])}, good) == (0, 0.25)
    assert gpu_checks.difference({**good, "x": np.array([1, 1, 1.5])}, good)[0] == 0.5


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_checks.shutil, "which", lambda name: None)
    assert GpuChecks(tmp_path).execute() == 2 and "--toy" in capsys.readouterr().out


def test_no_part_is_begun_without_time(asked, tmp_path):
    assert GpuChecks(tmp_path, minutes=0.05).execute() == gpu_checks.LEFT_OVER
    assert asked == []


def test_a_part_by_itself_leaves_its_figures(tmp_path):
    command = GpuChecks(tmp_path, parts=("ceilings",), toy=True, alone=True)
    assert command.execute() == 0
    figures = json.loads((tmp_path / "ceilings.json").read_text())
    assert figures["copy_gb_per_s"] > 0 and figures["versions"]["jax"]
    assert "copy_gb_per_s" in gpu_checks.table(tmp_path)
