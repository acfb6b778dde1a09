"""Slices of a run: why they end, what they go on from, what they leave; and that it learns."""

import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest
from PIL import Image

import mast3r_jax
from experiments.training import metrics
from experiments.training.config import TrainConfig, as_begun, check_unchanged, read_config
from experiments.training.ingredients import Ingredients
from experiments.training.parts import import_parts
from experiments.training.run_folder import (
    CHECKPOINTS,
    DESCRIPTIONS,
    MODEL,
    PARTS,
    RECORD,
    open_start,
    parts_config,
)
from experiments.training.trainer import train
from mast3r_jax import CheckpointError
from tests.experiments.training import cheap


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing curves takes longer than all the rest; one test does it."""
    monkeypatch.setattr(metrics, "draw_curves", lambda path, rows: None)


def slice_of(folder, config=cheap.CONFIG, **options):
    return train(config, folder, **{"ingredients": cheap.ingredients, "shares": False} | options)


def arrays_of(folder, config=cheap.CONFIG) -> dict[str, np.ndarray]:
    arrays = open_start(folder, config, None).arrays
    assert arrays is not None
    return {name: value.tobytes() for name, value in arrays.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken run, with its pictures and its shares of time."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    seen = []
    outcome = train(cheap.CONFIG, folder, ingredients=cheap.ingredients, report=seen.append)
    assert (outcome.ended_by, outcome.step) == ("steps", 12)
    return folder, seen


@pytest.mark.slow
def test_a_run_leaves_everything(whole):
    folder, seen = whole
    assert {path.name for path in folder.iterdir()} == set(DESCRIPTIONS)
    assert read_config(folder / "config.json") == cheap.CONFIG
    record = json.loads((folder / RECORD).read_text())
    assert (record["step"], record["skipped"]) == (12, 0)
    (entry,) = record["slices"]
    assert (entry["from_step"], entry["to_step"], entry["pairs"]) == (0, 12, 96)
    assert entry["pairs_per_second"] > 0 and entry["devices"] == 1 and entry["versions"]["jax"]
    assert sum(entry["shares"].values()) == pytest.approx(1)
    assert set(entry["step_seconds"]) == {"whole", "rendering", "forward", "backward"}
    rows = metrics.rows_until((folder / metrics.TABLE).read_text(), 100)
    assert rows[-1]["step"] == 12 and rows[-1]["pairs"] == 96
    assert {"loss", "error", "gradient_norm", "learning_rate", "skipped"} < rows[-1].keys()
    # What is exported is the average of the weights.
    model = mast3r_jax.checkpoint.safetensors.numpy.load_file(folder / MODEL / "model.safetensors")
    exported, _ = import_parts(folder / PARTS)
    average = exported["ema.kernel.value"]
    assert model["kernel"].dtype == np.float16
    np.testing.assert_array_equal(model["kernel"], average.astype(np.float16))
    assert not np.array_equal(average, exported["params.kernel.value"])
    # Reports: every step counted, the last ones of a slice that is written.
    assert [p.step for p in seen] == sorted(p.step for p in seen)
    assert (seen[-1].step, seen[-1].last_step, seen[-1].written) == (12, 12, True)
    assert [math.isfinite(p.loss) for p in seen] == [False] + [True] * (len(seen) - 1)


def test_curves_are_drawn(monkeypatch, tmp_path):
    monkeypatch.undo()
    slice_of(tmp_path / "run", last_step=1)
    with Image.open(tmp_path / "run" / metrics.CURVES) as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
def test_slices_add_up_to_the_unbroken_run(whole, tmp_path):
    folder = tmp_path / "run"
    assert slice_of(folder, last_step=5).step == 5
    # Time is over before anything could be done: nothing is lost.
    over = slice_of(folder, minutes=0.0)
    assert (over.ended_by, over.step) == ("time", 5)
    # What has no effect on the weights may change.
    other = cheap.changed(
        cheap.CONFIG,
        dispatch={"most_steps": 2},
        checkpoints={"keep": 1, "minutes": 9.0},
        optimizer={"patience": 3},
    )
    assert slice_of(folder, other).record["from_step"] == 5
    assert arrays_of(folder) == arrays_of(whole[0])
    assert [path.name for path in (folder / CHECKPOINTS).iterdir()] == ["12"]
    # Nothing is left to do, and nothing is done.
    before = (folder / RECORD).read_bytes()
    assert slice_of(folder).record == {}
    assert (folder / RECORD).read_bytes() == before
    froms = [entry["from_step"] for entry in json.loads(before)["slices"]]
    assert froms[0] == 0 and froms[-1] == 5


@pytest.mark.slow
def test_parts_carry_a_run_elsewhere(whole, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    slice_of(here, last_step=5)
    assert all(path.stat().st_size <= 100_000 for path in (here / PARTS).iterdir())
    (here / PARTS).rename(tmp_path / "carried")
    assert parts_config(tmp_path / "carried") == cheap.CONFIG
    outcome = slice_of(there, parts=tmp_path / "carried")
    assert (outcome.step, outcome.record["from_step"]) == (12, 5)
    assert arrays_of(there) == arrays_of(whole[0])
    # The curves and the record came along.
    rows = metrics.rows_until((there / metrics.TABLE).read_text(), 100)
    assert rows[0]["step"] <= 5 and rows[-1]["step"] == 12
    slices = json.loads((there / RECORD).read_text())["slices"]
    assert [entry["from_step"] for entry in slices] == [0, 5]

    with pytest.raises(CheckpointError, match="there: has come to step 12 by itself; leave out"):
        slice_of(there, parts=tmp_path / "carried")
    other = cheap.changed(cheap.CONFIG, optimizer={"beta_2": 0.5})
    with pytest.raises(CheckpointError, match=r"carried: was started with optimizer.beta_2=0.95"):
        slice_of(tmp_path / "new", other, parts=tmp_path / "carried")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_slice_and_leaves_a_checkpoint(whole, tmp_path, kind):
    told, before = [], signal.getsignal(kind)

    def report(progress):
        if progress.step == 2:
            os.kill(os.getpid(), kind)

    one = cheap.changed(cheap.CONFIG, dispatch={"seconds": 1e-6})  # a report after every step
    outcome = slice_of(tmp_path / "run", one, report=report, on_signal=lambda: told.append(kind))
    assert outcome.ended_by == "signal" and 2 <= outcome.step <= 4
    assert told == [kind] and signal.getsignal(kind) == before
    assert slice_of(tmp_path / "run", one).record["from_step"] == outcome.step
    assert arrays_of(tmp_path / "run") == arrays_of(whole[0])


@pytest.mark.slow
def test_a_run_that_diverges_ends(tmp_path):
    def broken(config: TrainConfig) -> Ingredients:
        def objective(model, pairs):
            value, figures = cheap.objective(model, pairs)
            return value * np.float32(np.nan), figures

        return dataclasses.replace(cheap.ingredients(config), objective=objective)

    config = cheap.changed(cheap.CONFIG, optimizer={"patience": 3}, dispatch={"loop": "no"})
    outcome = slice_of(tmp_path / "run", config, ingredients=broken)
    assert outcome.ended_by == "divergence" and 3 <= outcome.step <= 5
    assert json.loads((tmp_path / "run" / RECORD).read_text())["skipped"] == outcome.step
    exported, _ = import_parts(tmp_path / "run" / PARTS)
    assert all(np.isfinite(v).all() for n, v in exported.items() if n.startswith("params"))


# settings


def test_settings_survive_json():
    for config in (TrainConfig(), cheap.CONFIG):
        assert TrainConfig.from_json(config.to_json()) == config
        assert hash(TrainConfig.from_json(config.to_json())) == hash(config)


def test_settings_that_would_change_the_weights_are_refused():
    saved = cheap.CONFIG
    changes = {
        "seed": dataclasses.replace(saved, seed=4),
        "fixed_pairs": dataclasses.replace(saved, fixed_pairs=16),
        "network.sizes.enc_dim": cheap.changed(
            saved, network={"sizes": dataclasses.replace(cheap.SIZES, enc_dim=8)}
        ),
        "pairs.size": cheap.changed(saved, pairs={"size": (64, 32)}),
        "objective.temperature": cheap.changed(saved, objective={"temperature": 0.1}),
        "dispatch.loop": cheap.changed(saved, dispatch={"loop": "no"}),
        "schedule.steps": cheap.changed(saved, schedule={"steps": 99}),
    }
    for name, asked in changes.items():
        with pytest.raises(CheckpointError, match=rf"^run: was started with {name}=.*, not ") as e:
            check_unchanged("run", saved, asked)
        assert "\n" not in str(e.value)
    for section, value in (("checkpoints", {"keep": 7}), ("dispatch", {"seconds": 7.0})):
        check_unchanged("run", saved, cheap.changed(saved, **{section: value}))


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("optimizer", {"learning_rate": 0.0}, "learning_rate=0 must be above 0"),
        ("optimizer", {"beta_2": 1.0}, "beta_2=1 must be at least 0 and below 1"),
        ("schedule", {"warmup": 12}, "warmup=12 must be at least 0 and below steps=12"),
        ("schedule", {"motion": 1.5}, "motion=1.5 must be between 0 and 1"),
        ("dispatch", {"most_steps": 1}, "most_steps=1 must be at least 2"),
        ("checkpoints", {"part_megabytes": 0.01}, "part_megabytes=0.01 must be at least 0.1"),
        (
            "pairs",
            {"size": (50, 32)},
            "images of 50x32 pixels, as pairs.size says, do not divide into",
        ),
    ],
)
def test_values_out_of_range_are_refused(section, values, words):
    with pytest.raises(ValueError, match=words):
        cheap.changed(cheap.CONFIG, **{section: values})


def test_folders_that_are_no_runs(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(OSError, match=r"mine: holds other files \(thesis.tex\) and no training"):
        slice_of(tmp_path / "mine")
    with pytest.raises(OSError, match=r"thesis.tex: exists and is no folder"):
        slice_of(tmp_path / "mine" / "thesis.tex")
    with pytest.raises(CheckpointError, match="mine: no exported training state, it has no"):
        slice_of(tmp_path / "new", parts=tmp_path / "mine")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"seeds": 3}')
    with pytest.raises(CheckpointError, match=r"odd/config.json: is no configuration .*'seeds'"):
        slice_of(tmp_path / "odd")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        *("config.json", "mine", "odd", "thesis.tex")
    ]


def test_what_was_decided_when_a_run_began_stays_decided():
    begun = cheap.changed(cheap.CONFIG, network={"precision": "bfloat16"}, dispatch={"loop": "yes"})
    auto = cheap.changed(begun, network={"precision": "auto"}, dispatch={"loop": "auto"})
    assert as_begun(auto, begun) == begun and as_begun(auto, None) == auto
    asked = cheap.changed(begun, network={"precision": "float32"})
    assert as_begun(asked, begun) == asked  # and check_unchanged refuses it
