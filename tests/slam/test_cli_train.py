"""``mast3r-slam train``: help, bad input in one sentence, where settings come from, reports."""

import json
import math
import pathlib
import signal

import pytest

from experiments.training import metrics, trainer
from experiments.training.config import TrainConfig
from experiments.training.loop import Progress
from experiments.training.parts import export_parts
from experiments.training.presets import PRESETS
from experiments.training.trainer import Outcome
from tests.experiments.training import cheap
from tests.slam.test_cli import call, elsewhere, help_of, refused  # noqa: F401


@pytest.fixture
def asked(monkeypatch):
    """What the trainer would have been told; it ends as the test says, with some progress."""
    calls, outcome = [], Outcome("steps", 7, {})

    def train(config, folder, *, report, **options):
        calls.append((config, folder, options))
        numbers = [(0, math.nan, math.nan), (3, 2.5, 41.0), (7, 1.25, 40.0)]
        for step, loss, rate in numbers:
            report(Progress(step, 9, loss, rate, 3725.0 if step else math.nan, step == 7))
        return outcome

    monkeypatch.setattr(trainer, "train", train)

    def ask(*arguments, ends=None, status=0):
        nonlocal outcome
        outcome = ends or outcome
        assert call("train", *arguments) == status
        return calls.pop()

    return ask


def test_help(capsys):
    brief = help_of(capsys, "train", "--help")
    for part in ("RUN_FOLDER", "--minutes", "--from PARTS", "--preset small|toy", "--coordinator"):
        assert part in brief
    assert "--config.fixed-pairs" in brief and "train --help-all" in brief
    whole = help_of(capsys, "train", "--help-all")
    names = ("pairs.pairs", "network.sizes.enc-dim", "optimizer.beta-2", "checkpoints.minutes")
    for name in names:
        assert f"--config.{name}" in whole and f"--config.{name}" not in brief
    assert len(brief) < len(whole) / 4
    assert "mast3r-slam train" in help_of(capsys, "--help")


def test_bad_input(capsys, tmp_path):
    def bad(*options, words):
        refused(capsys, "train", "run", *options, words=words)

    bad("--preset", "huge", words=["--preset huge: there are small, toy"])
    bad("--minutes", -3, words=["--minutes -3: must be above 0"])
    bad("--steps", 0, words=["--steps 0: must be above 0"])
    bad("--processes", 2, words=["--processes 2: they find each other by --coordinator"])
    bad("--process-id", 1, words=["--process-id 1: must be at least 0 and below --processes 1"])
    bad("--config.pairs.pairs", 0, words=["--config.pairs.pairs=0 must be at least 1"])
    bad("--config.optimizer.beta-2", 1, words=["--config.optimizer.beta-2=1 must be"])
    bad("--config.pairs.size", 50, 48, words=["--config: images of 50x48 pixels, as pairs.size"])
    bad("--config.network.sizes.enc-dim", 30, words=["this network cannot be built: enc_dim=30"])
    bad("--from", tmp_path / "none", words=["none: no exported training state"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    refused(capsys, "train", tmp_path / "mine", words=["mine: holds other files (thesis.tex)"])
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(cheap.CONFIG.to_json())
    words = ["run: was started with seed=0, not 3; leave that option out"]
    refused(capsys, "train", run, "--config.seed", 3, words=words)
    (run / "config.json").write_text("[]")
    refused(capsys, "train", run, words=["config.json: is no configuration of a training run"])


def test_settings_come_from_the_run_or_the_parts_or_the_preset(asked, tmp_path):
    config, folder, options = asked("new")
    assert (config, folder) == (PRESETS["small"], pathlib.Path("new"))
    assert config.network == TrainConfig().network
    assert options["minutes"] == math.inf and options["parts"] is options["last_step"] is None
    assert options["shares"]
    config, _, options = asked(
        *("new", "--preset", "toy", "--config.seed", 5, "--minutes", 9, "--steps", 30),
        *("--no-shares", "--config.pairs.size", 96, 64, "--config.network.sizes.enc-depth", 1),
    )
    toy = PRESETS["toy"]
    assert (config.seed, config.optimizer, config.pairs.size) == (5, toy.optimizer, (96, 64))
    assert config.network.sizes.enc_depth == 1
    assert config.network.sizes.enc_dim == toy.network.sizes.enc_dim
    assert (options["minutes"], options["last_step"], options["shares"]) == (9, 30, False)

    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(cheap.CONFIG.to_json())
    assert asked(run)[0] == cheap.CONFIG
    # The preset is for new runs, and the options start from the run's settings.
    config, _, _ = asked(run, "--preset", "toy", "--config.checkpoints.keep", 5)
    assert config == cheap.changed(cheap.CONFIG, checkpoints={"keep": 5})
    about = {"config": json.loads(cheap.CONFIG.to_json()), "slices": []}
    export_parts(tmp_path / "parts", {}, about)
    config, folder, options = asked("new", "--from", tmp_path / "parts")
    assert config == cheap.CONFIG and options["parts"] == tmp_path / "parts"


RECORD = {
    "pairs_per_second": 1234.5,
    "seconds_to_first_step": 20.2,
    "shares": {"rendering": 0.08, "forward": 0.3, "backward": 0.55, "other": 0.07},
}


@pytest.mark.parametrize(
    ("ended_by", "status", "words"),
    [
        ("steps", 0, ["at step 7, where it was to end"]),
        ("time", 0, ["for the time is over", "next: mast3r-slam train run", "--from run/parts"]),
        ("signal", 130, ["as asked", "next: mast3r-slam train run"]),
        ("divergence", 1, ["not finite again and again", "--config.optimizer.learning-rate"]),
    ],
)
def test_reports(asked, capsys, ended_by, status, words):
    pathlib.Path("run/parts").mkdir(parents=True)
    asked("run", ends=Outcome(ended_by, 7, RECORD), status=status)
    said = capsys.readouterr().out
    for word in (
        *words,
        "run: cpu, 64 pairs a step",
        "step 7: loss 1.25, 40 pairs/s; written",
        "1.23e+03 pairs/s after the first step, which came after 20 s",
        "rendering 8 %, forward 30 %, backward 55 %, other 7 %",
        "parts/         everything needed to go on elsewhere",
    ):
        assert word in said, said
    assert "metrics.csv" not in said, "it is not there"
    assert max(map(len, said.splitlines())) <= 80
    assert ("next:" in said) == (ended_by != "steps")


def test_only_the_first_process_speaks(asked, capsys, monkeypatch):
    monkeypatch.setattr("slam.cli.train.join", lambda *address: None)
    asked("run", "--coordinator", "localhost:1", "--processes", 2, "--process-id", 1)
    assert capsys.readouterr().out == ""


def test_the_whole_command(monkeypatch, capsys):
    """A run with cheap ingredients, through the command line: trained, refused, gone on with."""
    handler = signal.getsignal(signal.SIGINT)  # ignored where the shell runs this in the background
    monkeypatch.setattr(metrics, "draw_curves", lambda path, rows: None)
    monkeypatch.setitem(PRESETS, "toy", cheap.CONFIG)
    monkeypatch.setitem(trainer.train.__kwdefaults__, "ingredients", cheap.ingredients)
    assert call("train", "run", "--preset", "toy", "--steps", 5, "--no-shares") == 0
    said = capsys.readouterr().out
    assert "Stopped at step 5" in said and "; written" in said
    assert max(map(len, said.splitlines())) <= 80
    assert all(name in said for name in ("model/", "parts/", "metrics.csv", "train.json"))
    changed = ("--config.optimizer.clip-norm", 2)
    refused(capsys, "train", "run", *changed, words=["optimizer.clip_norm=1.0, not 2"])
    assert call("train", "run", "--minutes", 9) == 0
    assert "Stopped at step 12, where it was to end" in capsys.readouterr().out
    assert call("train", "run") == 0
    assert call("train", "other", "--from", "run/parts") == 0
    assert signal.getsignal(signal.SIGINT) == handler
