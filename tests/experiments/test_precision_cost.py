"""What bfloat16 costs: what is learned by heart, and what is compared."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mast3r_jax
from experiments import precision_cost
from experiments.clips import ClipOptions, clip_config
from experiments.training.pairs import PairConfig
from experiments.training.rgbd import rgbd_pairs
from slam.priors import GeometryNoise, RenderedGeometryPrior
from slam.priors.rendered import DESCRIPTOR_SIZE
from tests.experiments.training import cheap

pytestmark = pytest.mark.slow

TOY = ClipOptions(frames=6, stride=4, size=(48, 32))


@pytest.fixture(scope="module")
def clip():
    return precision_cost.true_clip(5, TOY)


def test_what_is_learned_is_what_the_slam_asks_about(clip):
    """Keyframes are 0, 2 and 4."""
    asked = [(0, 0), (1, 0), (2, 0), (0, 2), (3, 2), (4, 2), (2, 4), (5, 4)]
    recording = precision_cost.recording_of(clip)
    assert list(map(tuple, recording.frames.tolist())) == asked
    config = PairConfig(size=TOY.size, pairs=24, correspondences=64)
    drawn = jax.jit(rgbd_pairs, static_argnums=2)(jax.random.key(0), recording, config)
    found = set()
    for n in range(config.pairs):
        (which,) = (
            row for row in range(len(asked)) if np.allclose(drawn.T_12[n], recording.T_12[row])
        )
        found.add(which)
        for view, points in zip(clip.views, (drawn.points_1, drawn.points_2), strict=True):
            np.testing.assert_allclose(points[n], view.points[which], atol=2e-4)
    assert len(found) > 5


def test_points_and_trajectories_are_held_against_the_truth_and_against_float32(clip):
    def noisy(seed):
        prior = RenderedGeometryPrior(GeometryNoise(depth=0.03, seed=seed))
        return precision_cost.ask(prior, clip.frames, np.asarray(clip.is_keyframe)).views

    first = noisy(1)
    larger = tuple(view.replace(points=1.02 * view.points) for view in first)
    said = {"float32": first, "larger": larger, "other": noisy(2)}
    figures = precision_cost.compare(said, clip, clip_config(TOY))
    for name in ("points_apart_percent", "trajectory_apart_cm"):
        assert figures["float32"][name] < 1e-3
    # A scale is seen in points, and in a trajectory that is aligned with a scale it is not.
    assert figures["larger"]["points_apart_percent"] == pytest.approx(2, rel=1e-3)
    assert figures["larger"]["trajectory_apart_cm"] < 0.1 * figures["other"]["trajectory_apart_cm"]
    # The truth, larger by as much as ``larger`` is, has the truth's own error.
    exact = figures["float32"]["rounding_alone_cm"]
    assert figures["larger"]["rounding_alone_cm"] == pytest.approx(exact, rel=0.05)
    assert figures["other"]["rounding_alone_cm"] > 1.2 * exact
    # Noise of 3 % is 0.67 of that in the middle, and the difference of two of them more by a root.
    of_truth, of_first = (
        figures["other"][name] for name in ("points_percent", "points_apart_percent")
    )
    assert 1 < of_truth < 3
    assert of_first == pytest.approx(np.sqrt(2) * of_truth, rel=0.1)
    for kind in figures.values():
        assert 0 < kind["trajectory_cm"] < 20
    lines = precision_cost.table([figures, figures]).splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    assert lines[2].split() == ["larger", *(f"{x:.2f}" for x in figures["larger"].values())]


def test_the_whole_experiment(monkeypatch, tmp_path, capsys):
    """All but the steps of training, which have tests of their own: here any weights will do."""
    steps, rng = [], np.random.default_rng(0)

    def train_many(recipe, count, state, proposals, last):
        steps.append((recipe, count, int(proposals.min()), int(last)))

        def some(x):
            return jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype)

        return state.replace(ema=jax.tree.map(some, state.ema)), None

    monkeypatch.setattr(precision_cost, "train_many", train_many)
    # Descriptors as large as the rendered geometry's: then the SLAM is the same program.
    sizes = dataclasses.replace(cheap.SIZES, descriptor_dim=DESCRIPTOR_SIZE)
    options = precision_cost.PrecisionCost(
        out=tmp_path, rooms=1, clips=TOY, seed=5, steps=3, network=sizes
    )
    assert options.execute() == 0
    (recipe, *how), *others = steps
    assert len(others) == 2 and how == [1, 1, 3] and recipe.batch == 8
    (room,) = json.loads((tmp_path / "precision.json").read_text())["rooms"]
    float32, *rounded = (room["figures"][kind] for kind in precision_cost.KINDS)
    assert float32["points_apart_percent"] == 0
    for kind in rounded:  # of rounding to 8 bits
        assert 0.01 < kind["points_apart_percent"] < 10
    assert mast3r_jax.load(tmp_path / "room-5").config == sizes
    assert "room 5: 8 pairs learned by heart" in capsys.readouterr().out
