"""The command: what it prints and writes, that it goes on, and that the best prior is the best."""

import json
import types

import jax
import numpy as np
import pytest

from experiments import prior_quality
from experiments.prior_quality import PriorQuality, judge_prior, trained_size
from experiments.quality.evaluation import (
    FIRST_SEED,
    Judge,
    QualityOptions,
    fingerprint_of,
    judge_all,
    summary,
    system_row,
)
from experiments.quality.report import card_figures, table
from experiments.quality.truth import PairChoice
from mast3r_jax.packaging import package
from slam.config import SlamConfig
from slam.evaluation import AteResult
from slam.io.frames import SourceFrame
from slam.io.procedural_options import parse_options
from slam.priors import GeometryNoise, RenderedGeometryPrior
from tests.mast3r_jax.golden_network import tiny_network
from tests.mast3r_jax.test_card import CARD

FEW = QualityOptions(
    sequences=1, frames=16, pairs=PairChoice(starts=1, overlaps=(0.9, 0.6), reach=15), system=False
)


def pair(overlap: float, **figures) -> dict:
    names = ("points_1", "points_2", "scale", "rotation", "direction", "placed")
    none = dict.fromkeys((*names, "matches", "descriptors"))
    own = none | {"points_1": 0.1, "placed": 1.0, "rotation": 2.0} | figures
    others = {who: none for who in ("constant", "identity", "patches")}
    return {"frames": [0, 1], "overlap": overlap, "prior": own, **others}


def sequence(number: int = 0, **system) -> dict:
    whole = {"frames": 10, "lost": 0, "pieces": 1, "ate_m": 0.1, "ate_percent_of_path": 1.0}
    return {
        "name": f"room {number}",
        "size": [64, 48],
        "pairs": [pair(0.5), pair(0.7, rotation=None, placed=0.0)],
        "system": whole | system,
    }


class Wall:
    """A camera that moves along a wall with a picture on it, by 3 pixels a frame."""

    name, num_frames = "wall", 16
    distance, focal, step = 3.0, 60.0, 3

    def __iter__(self):
        rng = np.random.default_rng(0)
        picture = rng.integers(0, 256, (48, 64 + self.step * self.num_frames, 3), np.uint8)
        for n in range(self.num_frames):
            T_WC = np.eye(4)
            T_WC[0, 3] = n * self.step * self.distance / self.focal
            yield SourceFrame(
                index=n,
                timestamp=0.1 * n,
                rgb=picture[:, self.step * n : self.step * n + 64],
                depth=np.full((48, 64), self.distance, np.float32),
                T_WC=T_WC,
                K=np.array([[self.focal, 0, 31.5], [0, self.focal, 23.5], [0, 0, 1]]),
            )


@pytest.mark.slow
def test_the_true_geometry_is_hard_to_beat(monkeypatch):
    judge = Judge(RenderedGeometryPrior(GeometryNoise.none()), SlamConfig(size=64), FEW)
    mean = np.broadcast_to(np.float32([0, 0, 1]), (48, 64, 3))
    monkeypatch.setattr(judge, "_constant", lambda size: (mean, mean))
    record = judge.judge(Wall())
    assert record["size"] == [64, 48] and json.dumps(record, allow_nan=False)
    assert [pair["frames"] for pair in record["pairs"]] == [[0, 2], [9, 0]]
    assert [pair["overlap"] for pair in record["pairs"]] == [58 / 64, 37 / 64]
    for pair in record["pairs"]:
        own, still = pair["prior"], pair["identity"]
        assert own["points_1"] < 1e-4 and own["points_2"] < 1e-4 and own["scale"] < 1e-4
        # Matches are whole pixels, of one degree.
        assert own["placed"] == 1.0 and own["rotation"] < 0.5 and own["direction"] < 5
        assert own["matches"] > 0.95 and own["descriptors"] > 0.95
        shift = 3 * abs(pair["frames"][1] - pair["frames"][0])
        assert still["points_1"] < 0.05 and still["matches"] == 0.0
        assert 0 < still["points_2"] < shift / 60 and still["rotation"] < 1e-3
        assert 0.01 < pair["constant"]["points_1"] < 1 and pair["constant"]["rotation"] is None
        assert pair["patches"]["descriptors"] > 0.9 and pair["patches"]["points_1"] is None


def test_files_and_table(tmp_path, capsys, monkeypatch):
    judged = []
    judge = types.SimpleNamespace(judge=lambda source: judged.append(source) or sequence())
    monkeypatch.setattr(prior_quality, "Judge", lambda *args: judge)
    arguments = {"files": [], "size": (64, 48), "options": FEW}
    found = judge_prior(RenderedGeometryPrior(), "truth", tmp_path, **arguments)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "7x7" in said and "rotation, degrees" in said and "truth, held-out rooms" in said
    told = json.loads((tmp_path / "quality.json").read_text())
    own = found["held-out rooms"]["figures"]["prior"]
    assert own["rotation"] == own["direction"] == np.inf
    assert told["held-out rooms"]["figures"]["prior"] == {
        **own,
        "rotation": "lost",
        "direction": "lost",
    }
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert [source.options.seed for source in judged] == [FIRST_SEED]
    # A second call finds everything there; nothing is judged again.
    again = judge_prior(RenderedGeometryPrior(), "truth", tmp_path, **arguments)
    assert again == found and len(judged) == 1


def test_what_was_judged_is_not_judged_again_unless_the_prior_is_another(tmp_path):
    calls = []

    def judge(source):
        calls.append(source)
        if source == 2 and len(calls) == 3:
            raise KeyboardInterrupt
        return sequence(source)

    sources = [(f"room-{n}", lambda n=n: n) for n in range(4)]
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = fingerprint_of(FEW, 64, [weights], "small")
    told = []
    arguments = (tmp_path / "records", first, lambda name, record: told.append(name))
    with pytest.raises(KeyboardInterrupt):
        judge_all(judge, sources, *arguments)
    records = judge_all(judge, sources, *arguments)
    assert calls == [0, 1, 2, 2, 3] and told == [f"room-{n}" for n in (0, 1, 0, 1, 2, 3)]
    assert [record["name"] for record in records] == [f"room {n}" for n in range(4)]
    weights.write_bytes(b"two")
    second = fingerprint_of(FEW, 64, [weights], "small")
    judge_all(judge, sources[:1], tmp_path / "records", second, arguments[-1])
    assert calls[5:] == [0] and first != second != fingerprint_of(FEW, 96, [weights], "small")
    # More sequences of the same kind do not spoil the ones that are there.
    more = QualityOptions(sequences=9, frames=16, pairs=FEW.pairs, system=False)
    assert fingerprint_of(more, 64, [weights], "small") == second


def test_summaries_count_what_is_lost_as_worst():
    records = [
        sequence(0),
        sequence(1, lost=9, ate_m=None, ate_percent_of_path=None),
        sequence(2, lost=2, ate_m=0.5, ate_percent_of_path=5.0),
    ]
    found = summary(records)
    assert found["pairs"] == 6 and found["overlap"] == [0.5, 0.7]
    own = found["figures"]["prior"]
    assert own["rotation"] == np.inf and own["placed"] == 0.5 and own["points_1"] == 0.1
    assert own["matches"] is None and own["scale"] is None
    assert found["system"]["ate_m"] == 0.5 and found["system"]["sequences_whole"] == 1
    assert found["system"]["frames_lost"] == pytest.approx(11 / 30)
    lines = table("small, rooms", found)
    assert max(map(len, lines)) <= 80 and "1 of 3 sequences in one piece" in lines[-1]
    assert any(line.startswith("rotation, degrees") and "lost" in line for line in lines)
    figures = card_figures(found)
    assert figures["whole system: error, m"] == 0.5 and figures["points of view 1, error"] == 0.1


def test_the_system_s_figures_are_those_of_its_run():
    error = AteResult(0.02, 0.01, 0.01, 0.04, 8, 2.0, 1.0, True, 1.1)
    result = types.SimpleNamespace(
        evaluate=lambda: error,
        num_frames=10,
        tracked=np.arange(10) < 8,
        submaps=(0, 1),
        num_keyframes=4,
        is_loop_link=np.array([True, False]),
        verdict=lambda: "fine",
    )
    row = system_row(result)
    assert row["ate_m"] == 0.02 and row["ate_percent_of_path"] == 1.0 and row["ate_frames"] == 8
    assert (row["lost"], row["pieces"], row["keyframes"], row["loop_links"]) == (2, 2, 4, 1)
    result.evaluate = lambda: None
    row = system_row(result)
    assert row["ate_m"] is None and json.dumps(row, allow_nan=False)


def test_rooms_are_no_training_rooms():
    """What the argument beside ``FIRST_SEED`` rests on: a key's words, and that all are new."""
    rooms = [parse_options(uri) for uri in QualityOptions().rooms((128, 96))]
    seeds = [room.seed for room in rooms]
    assert seeds == list(range(FIRST_SEED, FIRST_SEED + 20))
    assert {(room.frames, room.size) for room in rooms} == {(150, (128, 96))}
    for seed in seeds[:2]:
        assert jax.random.key_data(jax.random.key(seed)).tolist() == [0, seed]
    # Keys that training makes, from whatever root, do not look like that.
    roots = jax.random.split(jax.random.key(0), 500)
    keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 7), 20))(roots)
    assert (jax.random.key_data(keys)[..., 0] > 0).all()


def test_bad_input_is_one_sentence(tmp_path, capsys):
    for command, words in (
        (PriorQuality("nowhere"), "nowhere: no such checkpoint folder"),
        (PriorQuality("rendered", walk=tmp_path / "none", out=tmp_path), "none: no such file"),
    ):
        assert command.execute() == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and words in said and said.count("\n") == 1
    with pytest.raises(ValueError, match=r"frames=30 above pairs\.reach=30"):
        QualityOptions(frames=30)


def test_the_size_is_that_of_the_card(tmp_path):
    package(tmp_path / "tiny", tiny_network(), None, CARD)
    assert trained_size(tmp_path / "tiny") == (64, 48)
    assert trained_size(None) == trained_size(tmp_path) == (128, 96)
