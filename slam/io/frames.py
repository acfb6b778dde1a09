"""What a source of images yields, on the host, before preparation."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class SourceFrame:
    """One image as a source holds it (any size), with whatever ground truth comes along."""

    index: int
    """Position in the source as opened (after ``start`` and ``stride``), from 0."""
    timestamp: float
    """Seconds, on the source's own clock."""
    rgb: np.ndarray
    """uint8 [H, W, 3]."""
    depth: np.ndarray | None = None
    """float32 [H, W], metres along z, 0 where unknown; None only if the source has no depth."""
    T_WC: np.ndarray | None = None
    """float64 [4, 4], camera to world, NaN where unknown; None only if the source has no poses."""
    K: np.ndarray | None = None
    """float64 [3, 3], pinhole intrinsics in pixels of ``rgb``."""
    distortion: np.ndarray | None = None
    """OpenCV's coefficients ``k1, k2, p1, p2, ...`` of the lens, None if ``K`` tells all."""
    origin: str = ""
    """Where the image came from, for messages: a file, or a video and the frame's number."""


@runtime_checkable
class Source(Protocol):
    """A finite, re-iterable sequence of frames."""

    name: str
    """Short human-readable name, used for output folders."""
    num_frames: int | None
    """How many frames iteration will yield, None if the container does not tell."""

    def __iter__(self) -> Iterator[SourceFrame]: ...


class SourceError(ValueError):
    """Input that cannot be used; the message names the file, the place and the way out."""
