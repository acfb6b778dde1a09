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
        _check_shares(self, "min_match_fraction", "keyframe_threshold")


@dataclasses.dataclass(frozen=True)
class GraphConfig:
    """Which keyframes are linked, and how all their poses are optimised (section 3.5)."""

    min_match_fraction: float = 0.1
    """A link needs this share of confident matches in both directions, unless its keyframes
    follow one another."""
    min_descriptor_confidence: float = 1.5
    """A match counts when the geometric mean of its two descriptor confidences exceeds this."""
    min_point_confidence: float = 0.0
    """A match counts when both points are more confident than this, on average."""
    loop_closure: bool = True
    """Look for earlier views of the same place; otherwise only successive keyframes are linked."""
    spread: bool = False
    """For live cameras: verify and optimise in the frames after a keyframe, a piece in each, so
    that no frame takes much longer than others. The same links are found, some frames later."""
    rays: RayFactorConfig = dataclasses.field(
        default_factory=lambda: RayFactorConfig(max_iterations=10, rel_error=0.0, delta_norm=1e-8)
    )
    """Factors without calibration."""
    pixels: PixelFactorConfig = dataclasses.field(
        default_factory=lambda: PixelFactorConfig(max_iterations=10, rel_error=0.0, delta_norm=1e-8)
    )
    """Factors with known intrinsics."""

    def __post_init__(self) -> None:
        _check_shares(self, "min_match_fraction")


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """How earlier views of the same place are looked up."""

    num_candidates: int = 3
    """Keyframes that a query returns, at most."""
    min_score: float = 5e-3
    """A keyframe with a smaller similarity is not returned."""

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates={self.num_candidates} must be at least 1")


@dataclasses.dataclass(frozen=True)
class RelocalizationConfig:
    """How a lost camera finds itself again."""

    min_match_fraction: float = 0.3
    """Share of confident matches, in both directions, with a keyframe that was looked up."""
    strict: bool = True
    """Every keyframe that was looked up has to match; otherwise one is enough."""
    try_last: bool = True
    """A link with the last keyframe is enough in any case: a lens that was covered for a moment
    still looks there. (The original only tries what it looks up.)"""
    submap_after: int = 30
    """After so many frames without success a new submap is started; 0 never starts one."""

    def __post_init__(self) -> None:
        _check_shares(self, "min_match_fraction")
        if self.submap_after < 0:
            raise ValueError(f"submap_after={self.submap_after} must be at least 0")


@dataclasses.dataclass(frozen=True)
class SlamConfig:
    """Configuration of the whole system; hashable, so it is a static argument under ``jit``."""

    size: int = 512
    """Working size in pixels: the long side (or the short side when 224) after resizing."""
    keyframe_capacity: int = 64
    """Keyframes the buffers hold at the start; they double when full."""
    max_keyframes: int = 4096
    """No further keyframes are added beyond this; the run goes on and says so. From then on a lost
    camera is found again at the last keyframe only."""
    edge_capacity: int = 256
    """Directed factors the graph holds at the start, two a link; they double when full."""
    match: MatchConfig = dataclasses.field(default_factory=MatchConfig)
    """Iterative projective matching and descriptor refinement."""
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)
    """Placing a frame against the last keyframe."""
    graph: GraphConfig = dataclasses.field(default_factory=GraphConfig)
    """Linking keyframes and optimising their poses."""
    retrieval: RetrievalConfig = dataclasses.field(default_factory=RetrievalConfig)
    """Looking up earlier views of the same place."""
    relocalization: RelocalizationConfig = dataclasses.field(default_factory=RelocalizationConfig)
    """Finding a lost camera again."""

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % 16:
            below, above = max(self.size // 16, 1) * 16, (max(self.size, 0) // 16 + 1) * 16
            raise ValueError(f"size={self.size} must be a multiple of 16, such as {below}, {above}")
        for name in ("keyframe_capacity", "max_keyframes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        least = 2 * self.max_links
        if self.edge_capacity < least:
            raise ValueError(
                f"edge_capacity={self.edge_capacity} must be at least {least}: one keyframe can "
                f"add {self.max_links} links of two factors each"
            )

    @property
    def max_links(self) -> int:
        """Links that one new keyframe can add: to the previous one and to those looked up."""
        return 1 + self.retrieval.num_candidates


def _check_shares(config: Any, *names: str) -> None:
    for name in names:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"{name}={getattr(config, name):g} must be between 0 and 1")


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
