"""The command for a borrowed GPU: what it runs, what it leaves, and how it goes on."""

import json
import pathlib
import subprocess
from typing import ClassVar

import numpy as np
import pytest

from experiments import gpu_checks, gpu_parity, gpu_system
from experiments.gpu_checks import GpuChecks
from slam import init_state
from slam.io.preparation import prepare_frames
from slam.stepper import Stepper
from tests.slam import rim


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
    asked.clear()
    later = ("network", "stages", "memory", "system")
    assert GpuChecks(tmp_path, parts=later).execute() == 1
    assert asked == ["system", "network", "stages"]  # what may hang again comes last


def test_parity_that_does_not_hold_is_remembered(asked, tmp_path):
    for _ in range(2):
        assert GpuChecks(tmp_path, parts=("ceilings", "parity")).execute() == 1
    assert asked == ["ceilings", "parity"]


def test_what_is_not_a_number_is_wrong():
    good, bad = {"x": np.ones(3), "n": np.arange(4)}, {"x": np.array([1, np.nan, 1.0])}
    assert gpu_parity.difference(good, good) == (0, 0)
    assert gpu_parity.difference({**good, **bad}, good)[0] == np.inf
    assert gpu_parity.difference({**good, "n": np.array([0, 1, 2, 9])}, good) == (0, 0.25)
    assert gpu_parity.difference({**good, "x": np.array([1, 1, 1.5])}, good)[0] == 0.5


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


def test_kernels_that_were_written_are_not_run_again(monkeypatch, tmp_path):
    """Cut off in the second case, the part goes on with it."""
    begun = []

    def check(case, blocks, *, interpret):
        begun.append(case.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return {"entry": f"# {case.name}", "holds": True, "blocks": len(blocks)}

    monkeypatch.setattr(gpu_checks.kernel_parity, "check_and_time", check)
    command = GpuChecks(tmp_path, parts=("kernels",), toy=True, alone=True)
    with pytest.raises(KeyboardInterrupt):
        command.execute()
    assert not (tmp_path / "kernels.json").exists()
    assert command.execute() == 0
    assert begun[0] == "projection" and begun[1] == begun[2] and len(set(begun)) == 6
    figures = json.loads((tmp_path / "kernels.json").read_text())
    assert figures["holds"] and len(figures["measured"]) == 6
    # all blocks are tried on the first input of a kernel, the default on the others
    assert [case["blocks"] for case in figures["cases"].values()].count(1) == 3
    assert "# edges, pixels" in gpu_checks.table(tmp_path)


def test_a_profile_too_large_to_carry_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_system, "LARGEST_TRACE", 10)
    folder = tmp_path / "trace" / "plugins" / "profile" / "2026_01_01"
    folder.mkdir(parents=True)
    (folder / "host.xplane.pb").write_bytes(bytes(11))
    (folder / "host.trace.json.gz").write_bytes(bytes(10))
    assert gpu_system.kept(tmp_path / "trace", tmp_path) == {
        "trace.xplane.pb": 11, "trace.trace.json.gz": 10
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["trace.trace.json.gz"]


def test_the_next_frame_is_encoded_ahead_and_none_twice(monkeypatch):
    """And what comes out is what ``slam.run`` finds."""
    frames = [frame for _, frame in prepare_frames(rim.source(), rim.CONFIG.size)]
    step, encoded = rim.stepper(), []

    def encode(prior, frame):
        encoded.append(int(frame.index))
        return Stepper.encode(step, prior, frame)

    monkeypatch.setattr(step, "encode", encode)
    start, outputs = init_state(rim.EXACT, rim.CONFIG, frames[0]), []
    for _, output in gpu_system.overlapped(rim.EXACT, step, start, frames):
        outputs.append(output)
        assert len(encoded) == min(len(outputs) + 1, len(frames))
    assert encoded == [int(frame.index) for frame in frames]
    assert gpu_system.tracked(outputs) == rim.result().tracked.sum() == len(frames)
    np.testing.assert_array_equal(
        [output.is_keyframe for output in outputs], rim.result().is_keyframe
    )


@pytest.mark.slow
def test_maps_are_counted_with_the_tokens_that_a_gpu_keeps(tmp_path):
    """Of a pixel four numbers, point and confidence; of a patch, two bytes a channel."""
    command = GpuChecks(tmp_path, parts=("memory",), toy=True, alone=True)
    assert command.execute() == 0
    figures = json.loads((tmp_path / "memory.json").read_text())["maps"]
    pixels, patches = 64 * 48, 4 * 3
    expected = (pixels * 4 * 4 + patches * 2 * command.network.enc_dim) / 1e6
    for row in figures.values():
        assert expected <= row["mb_a_keyframe"] < expected + 1e-4
        assert row["gib_to_optimize"] > 0
