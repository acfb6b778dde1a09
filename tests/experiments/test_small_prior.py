"""One command called again and again: what is due, what is kept, and when it stops.

Training, tokens and errors are stood in for; each has tests of its own.
"""

import dataclasses
import datetime
import json
import math
import pathlib

import numpy as np
import pytest

import mast3r_jax
from experiments import small_prior
from experiments.quality.evaluation import summary
from experiments.small_prior import SmallPrior, SmallPriorPlan
from experiments.training.ingredients import decided
from experiments.training.trainer import Outcome
from mast3r_jax import MASt3RConfig
from mast3r_jax.card import check_files
from mast3r_jax.checkpoint import build, parameter_specs
from mast3r_jax.packaging import MAX_BYTES
from slam.priors import MASt3RPrior
from tests.experiments.quality.test_prior_quality import sequence

PLAN = SmallPriorPlan.toy()
STEPS = PLAN.train.schedule.steps


class Stage:
    """What stands in for the slow parts, and what they were asked for."""

    def __init__(self, work: pathlib.Path):
        self.run = work / "run"
        self.step, self.ended_by = 0, "time"
        self.per_slice = STEPS // 2
        self.calls: list[str] = []
        self.parts: list[pathlib.Path | None] = []

    def train(self, config, folder, *, parts, **rest):
        assert folder == self.run and rest["minutes"] == 9
        self.calls.append("train")
        self.parts.append(parts)
        self.step = min(self.step + self.per_slice, STEPS)
        sizes = config.network.sizes
        rng, specs = np.random.default_rng(self.step), parameter_specs(sizes)
        model = build(sizes, lambda name: 0.1 * rng.standard_normal(specs[name].shape))
        mast3r_jax.save(folder / "model", model, dtype=np.float16)
        (folder / "config.json").write_text(decided(config).to_json())
        (folder / "curves.png").write_bytes(b"PNG")
        (folder / "parts").mkdir(exist_ok=True)
        made = {"device": "a card", "devices": 1, "versions": {"jax": "9"}}
        slices = [
            {"pairs": 100, "pairs_per_second": 50.0, **made},
            {"pairs": 300, "pairs_per_second": 300.0, **made},
            {"pairs": 4, "pairs_per_second": None, **made},
        ]
        content = {"step": self.step, "skipped": 0, "slices": slices}
        (folder / "train.json").write_text(json.dumps(content))
        ended_by = "steps" if self.step == STEPS else self.ended_by
        return Outcome(ended_by=ended_by, step=self.step, record={})

    def view_tokens(self, model, key, config, views):
        del key, config
        self.calls.append("tokens")
        rng = np.random.default_rng(0)
        return rng.standard_normal((views, 12, model.config.enc_dim)).astype(np.float32)

    def judge_prior(self, prior, name, out, *, before_each, files, **rest):
        del out, rest
        assert isinstance(prior, MASt3RPrior) and prior.retrieval is not None and name == "toy"
        assert [path.name for path in files] == ["model.safetensors", "retrieval.safetensors"]
        self.calls.append("judge")
        before_each("room-0")
        return {"held-out rooms": summary([sequence()])}


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


@pytest.fixture
def stage(monkeypatch, work):
    monkeypatch.chdir(work.parent)
    monkeypatch.setattr(small_prior, "keep_compiled", lambda folder: None)
    made = Stage(work)
    for name in ("train", "view_tokens", "judge_prior"):
        monkeypatch.setattr(small_prior, name, getattr(made, name))
    return made


def call(work: pathlib.Path, began: float | None = None, **options) -> int:
    values = {"toy": True, "out": work.parent / "presets" / "toy"} | options
    return SmallPrior(work, **values).execute(began)


@pytest.mark.slow
def test_slice_by_slice_from_nothing_to_a_package(work, stage, capsys):
    target = work.parent / "presets" / "toy"
    assert call(work) == 3 and stage.calls == ["train"] and not target.exists()
    assert call(work) == 0
    assert stage.calls == ["train", "train", "tokens", "tokens", "judge"]
    card = check_files(target)
    assert (card.steps, card.pairs, card.image_size) == (STEPS, 4 * STEPS, PLAN.train.pairs.size)
    assert card.pairs_per_second == pytest.approx(400 / (2 + 1))  # in 2 s and 1 s
    assert card.device == "1 x a card" and card.versions == {"jax": "9"}
    assert card.date == datetime.date.today().isoformat() and card.licence == "Apache-2.0"
    assert card.errors["held-out rooms"]["points of view 1, error"] == 0.1
    assert card.errors["held-out rooms"]["rotation, degrees"] is None
    assert card.curves == "curves.png" and "AdamW, learning rate 0.002" in card.optimizer
    assert not any("ended early" in note for note in card.notes)
    prior = MASt3RPrior.load(target)
    assert prior.model.config == PLAN.train.network.sizes
    assert prior.retrieval.num_centroids == PLAN.retrieval.num_centroids
    assert f"{target}/: " in capsys.readouterr().out
    # What is done is not done again, but packaged anew.
    before = (target / "model.safetensors").read_bytes()
    assert call(work) == 0 and stage.calls[5:] == ["judge"]
    assert (target / "model.safetensors").read_bytes() == before


def test_the_minutes_are_kept(work, stage, monkeypatch, capsys):
    stage.per_slice = STEPS
    now = [0.0]
    monkeypatch.setattr(small_prior.time, "monotonic", lambda: now[0])

    def slow(spend, function):
        def stand_in(*args, **kwargs):
            now[0] += spend
            return function(*args, **kwargs)

        return stand_in

    monkeypatch.setattr(small_prior, "train", slow(9 * 60 - 10 - 59, stage.train))
    assert call(work, began=-10.0) == 3 and stage.calls == ["train"]  # 59 seconds left
    assert "time is up before the retrieval model is made" in capsys.readouterr().out

    def judge(prior, name, out, *, before_each, **rest):
        for number in range(9):
            before_each(f"room-{number}")
            now[0] += 100

    now[0] = 0.0
    monkeypatch.setattr(small_prior, "judge_prior", judge)
    assert call(work, began=-10.0) == 3
    # 10 s before it began, 400 s for four of them: 130 s are too few for another of 100 s.
    assert "time is up before room-4 is judged" in capsys.readouterr().out
    assert not (work.parent / "presets").exists()
    now[0] = 0.0
    monkeypatch.setattr(small_prior, "judge_prior", stage.judge_prior)
    assert call(work, began=-10.0) == 0 and stage.calls == ["train", "tokens", "tokens", "judge"]


def test_ending_early_is_told(work, stage, capsys):
    assert call(work, finish=True) == 2
    assert "there is no network yet" in capsys.readouterr().err
    assert call(work) == 3 and call(work, finish=True) == 0
    assert stage.calls == ["train", "tokens", "tokens", "judge"]
    card = check_files(work.parent / "presets" / "toy")
    assert card.steps == STEPS // 2
    assert f"Training was ended early: {STEPS} steps were planned." in card.notes
    # Trained on, everything that follows is made anew.
    assert call(work) == 0 and stage.calls[4:] == ["train", "tokens", "tokens", "judge"]
    assert check_files(work.parent / "presets" / "toy").steps == STEPS


def test_a_run_that_was_carried_without_its_checkpoints_goes_on_from_its_parts(work, stage):
    stage.per_slice = 1
    for _ in range(2):
        assert call(work) == 3
    (work / "run" / "checkpoints" / "2").mkdir(parents=True)
    assert call(work) == 3
    assert stage.parts == [None, work / "run" / "parts", None]


def test_what_cannot_go_on(work, stage, capsys, monkeypatch):
    assert call(work, out=None) == 2
    assert "--toy" in capsys.readouterr().err and not work.exists()
    stage.per_slice, stage.ended_by = 1, "divergence"
    assert call(work) == 1 and "smaller learning rate" in capsys.readouterr().out
    assert call(work, toy=False) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "was started with network.sizes.enc_dim=64, not 128" in said
    stage.ended_by = "signal"
    assert call(work) == 130

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(small_prior, "train", stopped)
    assert call(work) == 130 and "call again to go on" in capsys.readouterr().out


def test_training_may_have_been_on_another_kind_of_device(work, stage):
    stage.per_slice = STEPS
    assert call(work, finish=False) == 0
    path = work / "run" / "config.json"
    path.write_text(path.read_text().replace('"precision": "float32"', '"precision": "bfloat16"'))
    assert call(work) == 0 and stage.calls.count("train") == 1


def test_what_is_planned_fits_into_the_package():
    plan = SmallPriorPlan.small()
    assert plan.train.network.sizes == MASt3RConfig.small()
    specs = parameter_specs(plan.train.network.sizes)
    network = sum(math.prod(spec.shape) for spec in specs.values())
    width = plan.train.network.sizes.enc_dim
    retrieval = plan.retrieval.num_centroids * width + 2 * (width + 1) * width
    headers = 200 * len(specs) + 10_000  # names, types, shapes and places, as text
    assert 2 * (network + retrieval) + headers < MAX_BYTES
    # The networks that are tried are what ships, at full size, on what it was not trained on.
    assert plan.quality.sequences == 20 and plan.quality.system
    assert dataclasses.asdict(plan.quality)["frames"] == 150
