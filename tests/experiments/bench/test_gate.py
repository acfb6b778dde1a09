"""What is written and shown of a benchmark, and what its baseline refuses."""

import json

import pytest

from experiments.bench import gate
from experiments.bench.plot import plot
from experiments.bench.report import as_text
from experiments.bench.results import RESULTS
from slam.io.frames import SourceError
from tests.experiments.bench.small import MACHINE, results

PEER = "optimize 512x384, 32 kf: ours / C++ OpenMP"
SHARE = "optimize 512x384, 32 kf: share of the ceiling"
FRAME = "system small 256x192: a frame / its four main stages"


def doctored(path, **changes):
    """The baseline with fields of the ratio to a peer replaced."""
    sections = json.loads(path.read_text())
    sections["backends"]["cpu"]["ratios"][PEER].update(changes)
    path.write_text(json.dumps(sections))


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "baseline.json"
    assert gate.write_baseline(path, results()) == 3
    return path


def hold(path, run, cores=2):
    limits, there = gate.read_baseline(path, "cpu")
    return gate.compare(run.ratios, limits, {**MACHINE, "cores": cores}, there)


def test_the_same_run_keeps_its_own_baseline(baseline):
    kept = hold(baseline, results())
    assert (kept.violated, kept.not_compared, kept.compared) == ((), (), 3)
    limits, there = gate.read_baseline(baseline, "cpu")
    assert set(limits) == {PEER, SHARE, FRAME} and there["cores"] == 2
    assert limits[PEER] == gate.Limit(2.0, "lower", gate.TOLERANCE)
    assert limits[FRAME].value == pytest.approx(7 / 5)


def test_a_ratio_that_got_worse_is_one_line(baseline):
    # 1.6 times slower: both the ratio to the peer and the share of the ceiling.
    lines = hold(baseline, results(ours=3.2)).violated
    assert [line.split(": ")[0] for line in lines] == ["WORSE"] * 2
    assert PEER in lines[0] and "at most 3" in lines[0]
    assert SHARE in lines[1] and "at least" in lines[1]
    assert hold(baseline, results(ours=2.9)).violated == ()
    assert hold(baseline, results(ours=0.2)).violated == ()  # better is never worse
    doctored(baseline, value=1.0)
    assert len(hold(baseline, results()).violated) == 1


def test_what_was_not_measured_is_said_and_not_held_against_anybody(baseline):
    wrong = hold(baseline, results(error=1.0))
    assert wrong.not_compared == (f"not compared: {PEER}: C++ OpenMP computes something else",)
    assert wrong.compared == 2 and wrong.violated == ()
    run = results()
    run.stages.clear()
    alone = hold(baseline, run)
    assert (alone.compared, alone.not_run) == (1, 2)
    assert any("2 ratios of stages that were not run" in line for line in alone.lines)
    assert any("8" in note for note in hold(baseline, results(), cores=8).notes)


def test_a_baseline_keeps_other_backends_and_edited_tolerances(baseline):
    doctored(baseline, tolerance=1.1)
    run = results(ours=4.0)
    gate.write_baseline(baseline, run)
    assert gate.read_baseline(baseline, "cpu")[0][PEER] == gate.Limit(4.0, "lower", 1.1)
    run.machine = {**MACHINE, "backend": "gpu"}
    gate.write_baseline(baseline, run)
    assert set(json.loads(baseline.read_text())["backends"]) == {"cpu", "gpu"}


def test_baselines_that_cannot_be_used(baseline, tmp_path):
    def refused(path, backend, words):
        with pytest.raises(SourceError, match=words) as error:
            gate.read_baseline(path, backend)
        assert str(path) in str(error.value)

    refused(tmp_path / "none.json", "cpu", "no such baseline")
    refused(baseline, "gpu", "no ratios measured on a gpu")
    for change, words in (
        ({"better": "bigger"}, "expected 'lower' or 'higher'"),
        ({"value": 0.0}, "value must be above 0"),
        ({"tolerance": 0.5}, "tolerance at least 1"),
        ({"value": "fast"}, "is no baseline"),
        ({"unit": "ms"}, "is no baseline"),
    ):
        before = baseline.read_text()
        doctored(baseline, **change)
        refused(baseline, "cpu", words)
        baseline.write_text(before)
    for text in ("{", "[]", '{"format": 2}'):
        baseline.write_text(text)
        refused(baseline, "cpu", "something else than a baseline")


def test_the_baseline_of_the_package_can_be_read():
    limits, there = gate.read_baseline(gate.BASELINE, "cpu")
    assert any("C++ OpenMP" in name for name in limits) and there["cpu"] and there["cores"]


def test_tables_fit_the_terminal_and_tell_all():
    for run in (results(ours=98765.4), results(error=1.0)):
        text = as_text(run)
        assert max(map(len, text.splitlines())) <= 80
        assert "\N{HORIZONTAL ELLIPSIS}" not in text
    text = " ".join(as_text(results(error=1.0)).split())
    for part in (
        "optimize 512x384, 32 kf", "k-d tree, points *", "a processor, 2 cores", "69.8 frames per",
        "not measured: PyTorch: PyTorch is not installed",
        "brute force, desc.: 75 % of its matches are wrong",
        "C++ OpenMP disagrees: difference 1, at most 0.0001 allowed", "encoder", "rest",
    ):  # fmt: skip
        assert part in text, part


def test_files(tmp_path):
    run = results()
    run.write(tmp_path)
    told = json.loads((tmp_path / RESULTS).read_text())
    assert told["format"] == 1 and told["complete"] and told["date"][:2] == "20"
    assert set(told) >= {"plan", "machine", "ceilings", "stages", "system", "ratios"}
    (stage,) = told["stages"]
    assert stage["ours"]["median_ms"] == 2.0 and len(stage["ours"]["samples_ms"]) == 3
    # 1e7 operations at 100 GFLOP/s and 1e6 bytes at 10 GB/s take 0.1 ms each.
    assert stage["ours"]["share_of_ceiling"] == pytest.approx(0.05)
    assert {p["name"]: p["status"] for p in stage["peers"]} == {
        "C++ OpenMP": "measured", "PyTorch": "not here", "k-d tree, points": "measured",
        "brute force, desc.": "disagrees",
    }  # fmt: skip
    rows = told["system"]["rows_ms"]
    assert rows["frame"]["decoder"] == 2.0 and rows["frame"]["rest"] == 2.0
    assert rows["keyframe"] == {}
    plot(run, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
