"""The command for a borrowed GPU: what it runs, what it leaves, and how it goes on."""

import json
import subprocess

import pytest

from experiments import gpu_checks
from experiments.gpu_checks import GpuChecks


@pytest.fixture
def stage(monkeypatch):
    """Parts that take no time, and what was asked for."""
    asked = []

    def run(command, *, timeout, **rest):
        part = command[command.index("--parts") + 1]
        asked.append(part)
        if part == "network":
            raise subprocess.TimeoutExpired(command, timeout)
        if part != "stages":
            (folder / f"{part}.json").write_text(json.dumps({"device": "a card", "ms": 1.0}))
        return subprocess.CompletedProcess(command, 0 if part != "stages" else -9)

    folder = None

    def at(out):
        nonlocal folder
        folder = out
        return asked

    monkeypatch.setattr(gpu_checks.subprocess, "run", run)
    return at


def test_a_part_that_fails_or_hangs_costs_no_other_and_is_run_again(stage, tmp_path, capsys):
    asked = stage(tmp_path)
    parts = ("ceilings", "network", "stages", "memory")
    assert GpuChecks(tmp_path, parts=parts).execute() == gpu_checks.LEFT_OVER
    assert asked == list(parts)
    said = capsys.readouterr().out
    assert "cut off" in said and "failed, see" in said and "  ms: 1" in said
    asked.clear()
    GpuChecks(tmp_path, parts=parts).execute()
    assert asked == ["network", "stages"]


def test_no_part_is_begun_without_time(stage, tmp_path):
    asked = stage(tmp_path)
    assert GpuChecks(tmp_path, minutes=0.05).execute() == gpu_checks.LEFT_OVER
    assert asked == []


def test_a_part_by_itself_leaves_its_figures(tmp_path):
    command = GpuChecks(tmp_path, parts=("ceilings",), toy=True, alone=True)
    assert command.execute() == 0
    figures = json.loads((tmp_path / "ceilings.json").read_text())
    assert figures["copy_gb_per_s"] > 0 and figures["versions"]["jax"]
    assert "copy_gb_per_s" in gpu_checks.table(tmp_path)
