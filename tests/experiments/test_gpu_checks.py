"""The command for a borrowed GPU: what it runs, what it leaves, and how it goes on."""

import dataclasses
import gzip
import json
import pathlib
import subprocess
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import gpu_checks, gpu_goals, gpu_parity, gpu_trace
from experiments.bench.plan import STAGES, quick_plan
from experiments.gpu_checks import GpuChecks
from mast3r_jax import MASt3R
from tests.experiments.bench.small import results
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
    assert figures["copy_gb_per_s"] > 0 and figures["machine"]["versions"]["jax"]
    assert "copy_gb_per_s" in gpu_checks.table(tmp_path)


def test_kernels_that_were_written_are_not_run_again(monkeypatch, tmp_path):
    """Cut off in the second case, the part goes on with it."""
    begun = []

    def check(case, blocks, *, interpret):
        begun.append(case.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        best = {"pixels": 16, "num_warps": 1}
        return {"entry": f"# {case.name}", "holds": True, "blocks": len(blocks), "best": best}

    monkeypatch.setattr(gpu_checks.kernel_parity, "check_and_time", check)
    command = GpuChecks(tmp_path, parts=("kernels",), toy=True, alone=True)
    with pytest.raises(KeyboardInterrupt):
        command.execute()
    assert not (tmp_path / "kernels.json").exists()
    assert command.execute() == 0
    assert begun[0] == "projection" and begun[1] == begun[2] and len(set(begun)) == 6
    figures = json.loads((tmp_path / "kernels.json").read_text())
    assert figures["holds"] and len(figures["measured"]) == 6
    # several blocks are tried on the first input of a kernel, the default and the best on others
    tried = {name: case["blocks"] for name, case in figures["cases"].items()}
    assert (
        tried["refinement, float16"] == tried["edges, pixels"] == 2 < tried["refinement, float32"]
    )
    assert "# edges, pixels" in gpu_checks.table(tmp_path)


def test_the_benchmark_is_kept_run_by_run(monkeypatch, tmp_path):
    """Cut off in its third run, the part goes on with that, and the goals are told."""
    begun = []

    def run(plan, folder, report, ceilings):
        begun.append(plan.only)
        folder.mkdir(parents=True, exist_ok=True)
        found = dataclasses.replace(results(), complete=len(begun) != 3)
        found.write(folder)
        if not found.complete:
            raise KeyboardInterrupt

    monkeypatch.setattr(gpu_checks.suite, "run", run)
    command = GpuChecks(tmp_path, parts=("stages",), toy=True, alone=True)
    with pytest.raises(KeyboardInterrupt):
        command.execute()
    assert "stages, as far as it came:" in gpu_checks.table(tmp_path)
    assert "10 iterations: at most 30 ms: 2, met" in gpu_checks.goals(tmp_path)
    assert command.execute() == 0
    assert begun[-1] == begun[2]  # what may hang again comes last
    assert sorted(begun[:2] + begun[3:]) == sorted(gpu_checks.TOGETHER)
    assert {name for names in gpu_checks.TOGETHER for name in names} == set(STAGES) - {"system"}
    table = gpu_checks.table(tmp_path)
    assert "optimize 512x384, 32 kf, median_ms: 2" in table
    goals = gpu_checks.goals(tmp_path)
    assert "100 keyframes optimised in 10 iterations: at most 30 ms: 2, met" in goals
    assert "matching: at most 0.5 ms: not measured" in goals


def test_a_benchmark_that_fails_costs_no_other(monkeypatch, tmp_path, capsys):
    def run(plan, folder, report, ceilings):
        if plan.only[0] == "projection":
            raise RuntimeError("too much for the card")
        results().write(folder)

    monkeypatch.setattr(gpu_checks.suite, "run", run)
    command = GpuChecks(tmp_path, parts=("stages",), toy=True, alone=True)
    with pytest.raises(RuntimeError, match="projection: failed"):
        command.execute()
    assert "too much for the card" in capsys.readouterr().err
    assert len(list((tmp_path / "bench").glob("*/bench.json"))) == len(gpu_checks.TOGETHER) - 1


def test_goals_that_were_not_met():
    # A point and a confidence in single precision a pixel, tokens in half of it.
    keyframe = (512 * 384 * 4 * 4 + 768 * 1024 * 2) / 1e6
    maps = {"1000": {"gb": 20.0, "gb_to_optimize": 5, "mb_a_keyframe": keyframe, "mb_an_edge": 1.2}}
    parts = {"system": gpu_goals.figures(results().to_json()), "memory": {"maps": maps}}
    lines = {line.split(": ")[0]: line for line in gpu_goals.verdicts(parts)}
    assert len(lines) == len(gpu_goals.GOALS)
    assert lines["a tracking frame"].endswith("7, met")
    assert lines["a tracking frame, the moonshot"].endswith("at most 5 ms: 7, NOT met")
    assert lines["1,000 keyframes, optimised"].endswith("25, NOT met")
    assert lines["memory of a keyframe"].endswith("4.72, met")
    assert lines["matching"].endswith("not measured")


def test_parity_says_which_program_differs(monkeypatch):
    """The right one is compared with itself; the other draws a number whenever it is traced."""
    drawn = iter(range(10))
    cases = {
        "right": (lambda x: 2 * x, (jnp.ones(3),), 1e-6),
        "wrong": (lambda x: x + next(drawn), (jnp.ones(3),), 1e-6),
    }
    monkeypatch.setattr(
        gpu_parity,
        "MASt3R",
        lambda *rest, **options: nnx.eval_shape(lambda: MASt3R(*rest, rngs=nnx.Rngs(0))),
    )
    made = gpu_parity._cases((64, 48))
    assert {"match", "graph", "network"} <= set(made)
    for function, arguments, tolerance in made.values():
        assert jax.tree.leaves(jax.eval_shape(function, *arguments)) and 0 < tolerance < 0.05
    monkeypatch.setattr(gpu_parity, "_cases", lambda size: cases)
    jit = jax.jit
    monkeypatch.setattr(jax, "jit", lambda function: jit(lambda x: function(x)))  # traced anew
    figures = gpu_parity.parity((64, 48))
    holds = {name: case["holds"] for name, case in figures["cases"].items()}
    assert holds == {"right": True, "wrong": False} and not figures["holds"]


def test_the_profile_is_of_the_frames_after_the_first(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_trace, "BEFORE", 6)
    monkeypatch.setattr(gpu_trace, "Stepper", lambda config: rim.stepper())
    monkeypatch.setattr(gpu_trace, "walk", lambda plan: (rim.source(), rim.EXACT, rim.CONFIG))
    figures = gpu_trace.trace(quick_plan(), tmp_path)
    expected = rim.result()
    assert figures["frames"] == figures["tracked"] == len(expected.timestamps) - 6
    assert figures["keyframes"] == expected.is_keyframe[6:].sum() > 0
    assert figures["holds"] and figures["frames_per_second"] > 0
    assert not figures["compiled_meanwhile"]
    text = gzip.decompress((tmp_path / "trace.trace.json.gz").read_bytes()).decode()
    steps = {
        e["args"]["step_num"] for e in json.loads(text)["traceEvents"] if e.get("name") == "frame"
    }
    assert set(map(int, steps)) >= set(range(7, 13))


def test_a_profile_too_large_to_carry_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_trace, "LARGEST_TRACE", 10)
    folder = tmp_path / "trace" / "plugins" / "profile" / "2026_01_01"
    folder.mkdir(parents=True)
    (folder / "host.xplane.pb").write_bytes(bytes(11))
    (folder / "host.trace.json.gz").write_bytes(bytes(10))
    assert gpu_trace.kept(tmp_path / "trace", tmp_path) == {
        "trace.xplane.pb": 11, "trace.trace.json.gz": 10
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["trace.trace.json.gz"]


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
        assert row["gb_to_optimize"] > 0
