"""How far an estimated trajectory is from the true one: absolute trajectory error after alignment.

Alignment is the least-squares similarity of S. Umeyama, "Least-squares estimation of transformation
parameters between two point patterns", PAMI 1991; the error is that of the TUM RGB-D benchmark. All
in float64 numpy on the host.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_LINE_RATIO = 1e-3
"""Second over first singular value of the matched positions below which they count as a line."""

_STILL = 1e-9
"""Spread, relative to the coordinates, below which positions count as one point."""


class Alignment(NamedTuple):
    """A similarity ``x -> scale * rotation @ x + translation``."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def apply(self, points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The transformed points."""
        return self.scale * points @ self.rotation.T + self.translation


@dataclasses.dataclass(frozen=True)
class AteResult:
    """Absolute trajectory error in the reference's unit; NaN where it is not defined."""

    rmse: float
    mean: float
    median: float
    max: float
    num_poses: int
    """Matched poses the error is taken over."""
    path_length: float
    """Length of the reference's path through the matched poses."""
    percent_of_path: float
    """``rmse`` in percent of that length, NaN without motion."""
    with_scale: bool
    """Aligned by a similarity (monocular) rather than rigidly (metric)."""
    scale: float
    """Reference units per unit of the estimate; 1 when aligned rigidly."""
    note: str = ""
    """What makes the figures doubtful or undefined; empty if nothing does."""
    num_left_out: int = 0
    """Poses not compared, because they are in another world than the others."""

    def __str__(self) -> str:
        if np.isnan(self.rmse):
            return f"ATE undefined: {self.note}"
        others = f" ({self.num_left_out} in other worlds left out)" if self.num_left_out else ""
        kind = f"Sim(3), scale {self.scale:.4f}" if self.with_scale else "SE(3)"
        text = (
            f"ATE RMSE {self.rmse:.4f} m ({self.percent_of_path:.2f} % of "
            f"{self.path_length:.2f} m), {self.num_poses} poses{others}, {kind}"
        )
        return f"{text}; {self.note}" if self.note else text


class Evaluation(NamedTuple):
    """The error under both alignments."""

    sim3: AteResult
    se3: AteResult


def align_sim3(
    estimate: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "n 3"],
    with_scale: bool = True,
) -> Alignment:
    """The ``(scale, R, t)`` that minimises ``sum |reference - (scale R estimate + t)|^2``.

    Umeyama's closed form (eqs. 40-43); scale 1 if not ``with_scale``. Positions that do not move,
    in the estimate or the reference, leave the scale at 1; with fewer than three, or on a line, the
    rotation is one of many. Raises ``ValueError`` for no points or points that are not finite.
    """
    if not len(estimate):
        raise ValueError("no poses to align")
    estimate = np.asarray(estimate, np.float64)
    reference = np.asarray(reference, np.float64)
    if not (np.isfinite(estimate).all() and np.isfinite(reference).all()):
        raise ValueError("positions to align must be finite")
    centre_e, centre_r = estimate.mean(axis=0), reference.mean(axis=0)
    e, r = estimate - centre_e, reference - centre_r
    U, singular, Vt = np.linalg.svd(r.T @ e / len(e))
    # The reflection is taken out of the direction of least covariance.
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])
    R = (U * signs) @ Vt
    scale = 1.0
    if with_scale and not (_still(estimate) or _still(reference)):
        scale = float(singular @ signs / np.mean(np.sum(e * e, axis=1)))
    return Alignment(scale, R, centre_r - scale * R @ centre_e)


def ate_rmse(
    estimate: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "n 3"],
    with_scale: bool = True,
) -> float:
    """Root mean square distance of matched positions after alignment; NaN where ``ate`` says so."""
    return ate(estimate, reference, with_scale).rmse


def ate(
    estimate: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "n 3"],
    with_scale: bool = True,
) -> AteResult:
    """Absolute trajectory error of matched positions.

    Pairs with a reference that is not finite (unknown) are left out. An estimate that is not
    finite, fewer than three pairs, or a scale of zero make the error NaN, with the reason in
    ``note``: the numbers would mislead. Never raises for poor trajectories.
    """
    known = np.isfinite(reference).all(axis=1)
    estimate = np.asarray(estimate, np.float64)[known]
    reference = np.asarray(reference, np.float64)[known]
    n = len(estimate)
    length = float(np.linalg.norm(np.diff(reference, axis=0), axis=1).sum())
    nan = float("nan")

    def undefined(note: str, scale: float = nan) -> AteResult:
        return AteResult(nan, nan, nan, nan, n, length, nan, with_scale, scale, note)

    if n < 3:
        return undefined(f"only {n} matched poses, alignment takes at least 3")
    lost = np.count_nonzero(~np.isfinite(estimate).all(axis=1))
    if lost:
        return undefined(f"{lost} of {n} estimated positions are not finite")
    alignment = align_sim3(estimate, reference, with_scale)
    if not alignment.scale > 0:
        return undefined("no positive scale fits, the estimate is unrelated", alignment.scale)
    errors = np.linalg.norm(alignment.apply(estimate) - reference, axis=1)
    rmse = float(np.sqrt(np.mean(errors**2)))
    return AteResult(
        rmse=rmse,
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        max=float(errors.max()),
        num_poses=n,
        path_length=length,
        percent_of_path=100 * rmse / length if length > 0 else nan,
        with_scale=with_scale,
        scale=alignment.scale,
        note=_doubts(estimate, reference, with_scale),
    )


def evaluate(
    timestamps: Float[np.ndarray, " n"],
    positions: Float[np.ndarray, "n 3"],
    reference_timestamps: Float[np.ndarray, " m"],
    reference_positions: Float[np.ndarray, "m 3"],
    max_difference: float = 0.02,
) -> Evaluation:
    """Match two trajectories by time (seconds) and measure the error under both alignments."""
    i, j = associate(timestamps, reference_timestamps, max_difference)
    estimate, reference = positions[i], reference_positions[j]
    return Evaluation(ate(estimate, reference, True), ate(estimate, reference, False))


def associate(
    times_1: Float[np.ndarray, " n"], times_2: Float[np.ndarray, " m"], max_difference: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """Pairs of indices whose times differ by at most ``max_difference``, each used at most once.

    The closest pair is taken first, as the TUM RGB-D tools do; the result is in the order of the
    first index. ``times_2`` need not be sorted.
    """
    order = np.argsort(times_2, kind="stable")
    ordered = np.asarray(times_2, np.float64)[order]
    # Differences of decimal stamps near 1e9 carry rounding of 2e-7; "at most" should survive it.
    reach = max_difference + 1e-6
    first = np.searchsorted(ordered, times_1 - reach, side="left")
    last = np.searchsorted(ordered, times_1 + reach, side="right")
    i = np.repeat(np.arange(len(times_1)), last - first)
    steps = np.arange(len(i)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
    j = order[np.repeat(first, last - first) + steps]
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    difference = np.abs(np.asarray(times_1, np.float64)[i] - np.asarray(times_2, np.float64)[j])
    for k in np.lexsort((j, i, difference)):
        a, b = int(i[k]), int(j[k])
        if a not in pairs and b not in taken:
            pairs[a] = b
            taken.add(b)
    matched = sorted(pairs)
    return np.array(matched, np.int64), np.array([pairs[a] for a in matched], np.int64)


def _doubts(estimate: np.ndarray, reference: np.ndarray, with_scale: bool) -> str:
    still = [n for n, p in (("estimate", estimate), ("reference", reference)) if _still(p)]
    if still:
        what = "scale and rotation are" if with_scale else "rotation is"
        verb = "does" if len(still) == 1 else "do"
        return f"the {' and the '.join(still)} {verb} not move, so {what} undetermined"
    singular = np.linalg.svd(reference - reference.mean(axis=0), compute_uv=False)
    if singular[1] < _LINE_RATIO * singular[0]:
        return "the reference moves along a line, so the rotation about it is undetermined"
    return ""


def _still(positions: np.ndarray) -> bool:
    spread = np.abs(positions - positions.mean(axis=0)).max()
    return bool(spread <= _STILL * max(1.0, np.abs(positions).max()))
