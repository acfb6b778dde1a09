"""Matching: iterative projection, descriptor refinement, and both as ``ops.match``."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from experiments.bench import inputs, work
from experiments.bench.peers import cpp, matchers
from experiments.bench.plan import Plan, Size, written
from experiments.bench.stage import Agreement, Peer, Stage, absent
from experiments.bench.timing import compiled
from ops import MatchConfig, iterative_projection, match, refine_matches

PIXELS_TOLERANCE = 0.01
"""Of the positions that both found; in pixels, at the 99th percentile."""
SHARE_TOLERANCE = 0.01
"""Share of pixels that may differ: where the best of two is a matter of rounding."""


def matching_stages(plan: Plan) -> Iterator[Stage]:
    """All stages of matching that are asked for, at every size."""
    if plan.wants("projection", "refinement", "match"):
        for size in plan.sizes:
            yield from _at_size(plan, size)


def _at_size(plan: Plan, size: Size) -> Iterator[Stage]:
    config, on, pixels = MatchConfig(), written(size), size[0] * size[1]
    views = inputs.two_views(size)
    points_1, points_2, descriptors_1, descriptors_2 = views.maps
    channels = descriptors_1.shape[-1]
    projected, seconds = compiled(
        lambda a, b: iterative_projection(a, b, config=config),
        points_1, points_2, cached=plan.quick,
    )  # fmt: skip
    found = projected()
    if plan.wants("projection"):
        peers = plan.beside(
            lambda: cpp_peer(
                lambda: cpp.Projection(points_1, points_2, config),
                lambda theirs: position_difference(theirs, (found.uv, found.converged)),
            )
        )
        about = {"converged": float(np.mean(found.converged)), **_motion(views.truth, size)}
        counted = work.projection(pixels, config)
        yield Stage("projection", on, projected, seconds, counted, peers, about)
    if plan.wants("refinement"):
        whole = np.asarray(found.uv).astype(np.int32)
        start = jax.device_put(whole[:, 0] + size[0] * whole[:, 1])
        refined, seconds = compiled(
            lambda a, b, index: refine_matches(a, b, index, config),
            descriptors_1, descriptors_2, start, cached=plan.quick,
        )  # fmt: skip
        expected = refined()
        peers = plan.beside(
            lambda: cpp_peer(
                lambda: cpp.Refinement(descriptors_1, descriptors_2, start, config),
                lambda theirs: index_difference(theirs, expected),
            )
        )
        counted = work.refinement(pixels, channels, config)
        yield Stage("refinement", on, refined, seconds, counted, peers)
    if plan.wants("match"):
        matched, seconds = compiled(
            lambda *maps: match(*maps, config=config), *views.maps, cached=plan.quick
        )
        ours = matched()

        def wrong(index: np.ndarray) -> float:
            return wrong_share(index, np.asarray(ours.valid), views.truth, size)

        peers = plan.beside(
            lambda: cpp_peer(
                lambda: cpp.Match(views.maps, config),
                lambda theirs: match_difference(theirs, (ours.index, ours.valid)),
            ),
            lambda: matchers.tree_peer(points_1, points_2, wrong),
            lambda: matchers.brute_force_peer(descriptors_1, descriptors_2, wrong),
        )
        about = {
            "valid": float(np.mean(ours.valid)),
            "wrong": wrong(np.asarray(ours.index)),
            **_motion(views.truth, size),
        }
        counted = work.matching(pixels, channels, config)
        yield Stage("match", on, matched, seconds, counted, peers, about)


def cpp_peer(make: Callable[[], Callable[[], Any]], compare: Callable[[Any], Agreement]) -> Peer:
    """A C++ peer whose result is compared with ours."""
    try:
        call = make()
    except cpp.NoCompiler as error:
        return absent(cpp.NAME, str(error))
    return Peer(cpp.NAME, call, agreement=compare(call()))


def position_difference(theirs: tuple[Any, Any], ours: tuple[Any, Any]) -> Agreement:
    """Of positions ``[hw, 2]`` that both converged to; infinite if few pixels converge for both."""
    uv, converged = map(np.asarray, theirs)
    our_uv, our_converged = map(np.asarray, ours)
    if np.mean(converged != our_converged) > SHARE_TOLERANCE:
        return Agreement("99 % of positions, px", np.inf, PIXELS_TOLERANCE)
    both = converged & our_converged
    distance = np.linalg.norm(uv[both] - our_uv[both], axis=-1)
    error = float(np.percentile(distance, 99)) if both.any() else np.inf
    return Agreement("99 % of positions, px", error, PIXELS_TOLERANCE)


def index_difference(theirs: Any, ours: Any) -> Agreement:
    """Share of indices that differ."""
    error = float(np.mean(np.asarray(theirs) != np.asarray(ours)))
    return Agreement("share that differs", error, SHARE_TOLERANCE)


def match_difference(theirs: tuple[Any, Any], ours: tuple[Any, Any]) -> Agreement:
    """Share of pixels whose validity differs, or whose match does where it is valid."""
    (index, valid), (our_index, our_valid) = (map(np.asarray, pair) for pair in (theirs, ours))
    differs = (valid != our_valid) | (valid & our_valid & (index != our_index))
    return Agreement("share that differs", float(np.mean(differs)), SHARE_TOLERANCE)


def wrong_share(index: np.ndarray, valid: np.ndarray, truth: np.ndarray, size: Size) -> float:
    """Of the valid matches whose truth is known, the share not within ``CLOSE`` pixels of it."""
    known = valid & np.isfinite(truth[:, 0])
    uv = np.stack([index % size[0], index // size[0]], axis=-1)
    distance = np.linalg.norm(uv[known] - truth[known], axis=-1)
    return float(np.mean(distance > matchers.CLOSE)) if known.any() else 1.0


def _motion(truth: np.ndarray, size: Size) -> dict[str, float]:
    """How far the pixels move from one image to the other, in pixels, in the middle."""
    number = np.arange(len(truth))
    start = np.stack([number % size[0], number // size[0]], axis=-1)
    return {"motion_px": float(np.nanmedian(np.linalg.norm(truth - start, axis=-1)))}
