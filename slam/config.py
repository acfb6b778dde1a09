"""Every choice of the SLAM system, in frozen records.

Values are those of the original's ``base.yaml`` unless a comment says otherwise.
"""

import dataclasses
from typing import Any, Literal, TypeVar

from ops import MatchConfig, PixelFactorConfig, RayFactorConfig

FusionMode = Literal[
    "weighted_pointmap", "weighted_spherical", "indep_conf", "best_score", "recent", "first"
]
"""The rules of ``ops.fuse``."""


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """How a frame is placed against the last keyframe (MASt3R-SLAM sections 3.2 to 3.4)."""

    min_match_fraction: float = 0.05
    """A frame with a smaller share of usable matches is lost."""
    min_descriptor_confidence: float = 1.5
    """A match counts when the geometric mean of its two descriptor confidences exceeds this."""
    min_point_confidence: float = 0.0
    """A match counts when both points are more confident than this."""
    keyframe_threshold: float = 0.333
    """A frame becomes a keyframe when the smaller of matched and distinct shares drops below."""
    rays: RayFactorConfig = dataclasses.field(default_factory=RayFactorConfig)
    """Pose problem without calibration."""
    pixels: PixelFactorConfig = dataclasses.field(default_factory=PixelFactorConfig)
    """Pose problem with known intrinsics."""
    fusion: FusionMode = "weighted_pointmap"
    """How a keyframe's pointmap takes in new predictions of itself."""
    fusion_score: Literal["median", "mean"] = "median"
    """What `best_score` judges a prediction's confidences by."""

    def __post_init__(self) -> None:
        for name in ("min_match_fraction", "keyframe_threshold"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name):g} must be between 0 and 1")


@dataclasses.dataclass(frozen=True)
class SlamConfig:
    """Configuration of the whole system; hashable, so it is a static argument under ``jit``."""

    size: int = 512
    """Working size in pixels: the long side (or the short side when 224) after resizing."""
    keyframe_capacity: int = 64
    """Keyframes the buffers hold at the start; they double when full."""
    max_keyframes: int = 4096
    """No further keyframes are added beyond this; the run goes on and says so."""
    match: MatchConfig = dataclasses.field(default_factory=MatchConfig)
    """Iterative projective matching and descriptor refinement."""
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    """Placing a frame against the last keyframe."""

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % 16:
            below, above = max(self.size // 16, 1) * 16, (max(self.size, 0) // 16 + 1) * 16
            raise ValueError(f"size={self.size} must be a multiple of 16, such as {below}, {above}")
        for name in ("keyframe_capacity", "max_keyframes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


T = TypeVar("T")


def config_from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Rebuild nested configuration records from what ``dataclasses.asdict`` gives.

    Args:
        cls: record to build, for instance ``SlamConfig``.
        values: by field name; missing fields keep their defaults.

    Raises:
        ValueError: a key that the record does not have.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(
            f"unknown configuration key {unknown[0]!r} in {cls.__name__}; "
            f"it has: {', '.join(fields)}"
        )
    built = {}
    for name, value in values.items():
        nested = fields[name].type
        if dataclasses.is_dataclass(nested) and isinstance(nested, type):
            value = config_from_dict(nested, value)
        built[name] = value
    return cls(**built)
