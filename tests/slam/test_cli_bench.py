"""``mast3r-slam bench``: help, bad input in one sentence, files, and its gate."""

import json
import pathlib

import pytest

from experiments.bench import gate, suite
from slam.cli import bench
from slam.cli.bench import Bench, spelled_out
from tests.experiments.bench.small import results
from tests.slam.test_cli import call, elsewhere, help_of, refused  # noqa: F401


@pytest.fixture
def measured(monkeypatch):
    """Nothing is measured; what would have been is returned."""
    plans = []

    def run(plan, folder, report):
        plans.append(plan)
        run.results.write(folder)
        report("something: 1 ms")
        return run.results

    run.results = results()
    monkeypatch.setattr(suite, "run", run)
    run.plans = plans
    return run


def test_help(capsys):
    text = help_of(capsys, "bench", "--help")
    for part in ("--only STAGE", "--quick", "--compare [BASELINE]", "WxH", "exit status 1", "g++"):
        assert part in text, part
    assert "mast3r-slam bench" in help_of(capsys, "--help")


def test_bad_input(capsys, measured, tmp_path):
    def bad(*options, words):
        refused(capsys, "bench", *options, words=words)

    bad("--only", "encodre", words=["--only encodre: there are encoder, decoder"])
    bad("--sizes", "224", words=["--sizes 224: a size is WIDTHxHEIGHT"])
    bad("--sizes", "200x160", words=["--sizes 200x160: width and height must be multiples"])
    bad("--system-size", "224x160", words=["--system-size 224x160", "not 224 wide"])
    bad("--repeats", 0, words=["--repeats 0: must be at least 1"])
    bad("--seconds", 0, words=["--seconds 0: must be above 0"])
    bad("--solver-keyframes", 64, 1, words=["--solver-keyframes 1: must be at least 2"])
    bad("--compare", "none.json", words=["none.json: no such baseline", "--write-baseline"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    bad("--out", tmp_path / "mine", words=["mine: holds other files (thesis.tex)"])
    bad("--write-baseline", tmp_path / "mine" / "thesis.tex", words=["holds something else"])
    assert measured.plans == []


def test_it_writes_compares_and_fails_when_a_ratio_gets_worse(capsys, measured):
    assert call("bench", "--write-baseline", "mine.json") == 0
    said, err = capsys.readouterr()
    assert err == "" and max(map(len, said.splitlines())) <= 80
    assert "Results in outputs/bench/" in said and "3 ratios written to mine.json" in said
    folder = pathlib.Path("outputs/bench")
    assert {path.name for path in folder.iterdir()} == set(bench.DESCRIPTIONS)
    assert json.loads((folder / "bench.json").read_text())["complete"]
    assert call("bench", "--compare", "mine.json") == 0
    assert pathlib.Path("outputs/bench-2").is_dir()
    measured.results = results(ours=5.0)
    capsys.readouterr()
    assert call("bench", "--compare", "mine.json", "--out", folder) == 1
    said = capsys.readouterr().out
    assert said.count("WORSE: ") == 2 and "1 of 3 ratios kept" in said


def test_a_gate_that_compares_nothing_does_not_pass(capsys, measured):
    measured.results.stages.clear()
    measured.results.system = None
    assert call("bench", "--compare") == 2
    assert "none of the" in capsys.readouterr().err


def test_a_peer_that_disagrees_is_a_failure(capsys, measured):
    measured.results = results(error=1.0)
    assert call("bench") == 1 and "disagrees" in capsys.readouterr().out


def test_interrupted(capsys, monkeypatch):
    def run(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", run)
    assert call("bench") == 130
    assert "what was measured is in outputs/bench/" in capsys.readouterr().err


def test_compare_alone_means_the_baseline_of_the_package():
    assert spelled_out(["bench", "--compare"]) == ["bench", "--compare="]
    assert spelled_out(["bench", "--compare", "--quick"]) == ["bench", "--compare=", "--quick"]
    for other in (["bench", "--compare", "mine.json"], ["run", "--compare"], []):
        assert spelled_out(other) == other
    assert gate.BASELINE.name == "baseline.json"


def test_options_make_a_plan():
    plan = Bench(sizes=("64x48", "128x96"), only=("match",)).plan()
    assert plan.sizes == ((64, 48), (128, 96)) and plan.network_sizes == ((64, 48),)
    assert plan.only == ("match",) and plan.wants("match") and not plan.wants("system")
    assert Bench(quick=True).plan().quick
