"""Configuration: frozen, hashable, readable back, and unforgiving of typing errors."""

import dataclasses
import json
import typing

import pytest

from ops import FUSION_MODES, MatchConfig, RayFactorConfig
from slam.config import FusionMode, SlamConfig, TrackingConfig, config_from_dict

CHANGED = SlamConfig(
    size=224,
    max_keyframes=100,
    match=MatchConfig(radius=2, max_iterations=5),
    tracking=TrackingConfig(
        fusion="best_score", fusion_score="mean", rays=RayFactorConfig(sigma_ray=0.01)
    ),
)


@pytest.mark.parametrize("config", [SlamConfig(), CHANGED])
def test_round_trip_through_json(config):
    read = config_from_dict(SlamConfig, json.loads(json.dumps(dataclasses.asdict(config))))
    assert read == config and hash(read) == hash(config)
    assert isinstance(read.tracking.rays, RayFactorConfig)


def test_missing_keys_keep_their_defaults():
    read = config_from_dict(SlamConfig, {"tracking": {"rays": {"huber": 2.0}}})
    assert read == SlamConfig(tracking=TrackingConfig(rays=RayFactorConfig(huber=2.0)))


@pytest.mark.parametrize(
    ("values", "key", "place"),
    [
        ({"sise": 512}, "sise", "SlamConfig"),
        ({"tracking": {"rays": {"sigma_rays": 1}}}, "sigma_rays", "RayFactorConfig"),
        ({"match": {"b": 1, "a": 2}}, "a", "MatchConfig"),
    ],
)
def test_unknown_keys_are_named(values, key, place):
    with pytest.raises(ValueError, match=f"unknown configuration key '{key}' in {place}; it has: "):
        config_from_dict(SlamConfig, values)


def test_every_fusion_mode_can_be_chosen():
    assert set(typing.get_args(FusionMode)) == set(FUSION_MODES)
    assert len(typing.get_args(FusionMode)) == len(FUSION_MODES) == 6


def test_defaults_are_the_originals():
    """``config/base.yaml`` of the original."""
    config = SlamConfig()
    match, tracking = config.match, config.tracking
    assert (match.max_iterations, match.lambda_init, match.convergence) == (10, 1e-8, 1e-6)
    assert (match.max_distance, match.radius, match.dilation) == (0.1, 3, 5)
    assert (tracking.min_match_fraction, tracking.keyframe_threshold) == (0.05, 0.333)
    assert (tracking.min_point_confidence, tracking.min_descriptor_confidence) == (0.0, 1.5)
    assert (tracking.rays.sigma_ray, tracking.rays.sigma_dist) == (3e-3, 1e1)
    assert (tracking.pixels.sigma_pixel, tracking.pixels.sigma_depth) == (1.0, 1e1)
    for solver in (tracking.rays, tracking.pixels):
        assert (solver.huber, solver.max_iterations) == (1.345, 50)
        assert (solver.rel_error, solver.delta_norm) == (1e-3, 1e-3)
    assert tracking.fusion == "weighted_pointmap" and config.size == 512


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 100}, r"size=100 must be a multiple of 16, such as 96, 112"),
        ({"size": 0}, "size=0"),
        ({"keyframe_capacity": 0}, "keyframe_capacity=0 must be at least 1"),
        ({"max_keyframes": -1}, "max_keyframes=-1"),
        ({"tracking": {"min_match_fraction": 2.0}}, "min_match_fraction=2 must be between 0 and 1"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        config_from_dict(SlamConfig, values)
