"""``mast3r-slam run SOURCE``: the system on the user's own images."""

import dataclasses
import pathlib
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import tyro

import mast3r_jax
from mast3r_jax.checkpoint import CONFIG, WEIGHTS, presets
from mast3r_jax.retrieval import RetrievalModel, has_retrieval, load_retrieval
from ops import MatchConfig
from slam.cli.options import (
    Count,
    DepthScale,
    File,
    Flag,
    Folder,
    Number,
    PresetName,
    without_loop_closure,
)
from slam.cli.session import rendered_name, rendered_record, run_and_report
from slam.config import (
    GraphConfig,
    RelocalizationConfig,
    RetrievalConfig,
    SlamConfig,
    TrackingConfig,
)
from slam.io.frames import Source, SourceError
from slam.io.open_source import depth_scale_of, open_source
from slam.outputs import check_folder
from slam.presets import read_preset
from slam.priors.mast3r import MASt3RPrior
from slam.priors.rendered import GeometryNoise, RenderedGeometryPrior
from slam.types import TwoViewPrior

RENDERED = "rendered"
"""Name of the prior that takes its geometry from the source."""

ADVICE_NETWORK = (
    "next: the prior's predictions do not agree between frames. Are these trained weights, and do "
    "neighbouring images overlap? See panels/ and run.json."
)
ADVICE_RENDERED = (
    "next: the source's depth and poses do not agree between frames. Are --depth-scale and the "
    "intrinsics right, and do neighbouring images overlap? See panels/ and run.json."
)
"""What to look into when no frame fits the first."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Reconstruct a video, a folder of images, a TUM RGB-D folder, or a made-up room."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Video file, folder of images, TUM RGB-D folder, or `procedural:room?seed=3&frames=150`."""
    prior: Annotated[str, tyro.conf.arg(metavar="WEIGHTS|rendered")]
    """Folder made by `mast3r-slam convert`, or `rendered`: the source's own depth and poses,
    with errors such as --noise.depth 0.01; see --help-all."""
    preset: PresetName = "base"
    """Values to start from: base, calib, eval_calib, eval_no_calib, eth3d, or an original YAML."""
    out: Folder = None
    """Folder for the results."""
    overwrite: Flag = False
    """Replace the results of an earlier run in --out."""
    start: int = 0
    """First frame to use."""
    stride: int = 1
    """Use every n-th frame from there."""
    max_frames: Count = None
    """Use at most this many frames."""
    fps: Number = None
    """Frames per second, for videos and folders of images."""
    depth_scale: DepthScale = None
    """Units per metre of the depth images of a TUM RGB-D folder."""
    calib: File = None
    """Track with this camera: `fx fy cx cy [k1 k2 p1 p2 [k3]]` in a text, or an original YAML."""
    calibrated: Flag = False
    """Track with the intrinsics that the source itself tells."""
    center_principal_point: Flag = True
    """With --calib or --calibrated: put the optical axis into the image's centre."""
    no_loop_closure: Flag = False
    """Do not look for earlier views of the same place."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; auto: bfloat16 on a GPU, float32 on a CPU."""
    min_confidence: float = 1.5
    """Points of map.ply are more confident than this."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """With --prior rendered: what it gets wrong."""
    config: SlamConfig = dataclasses.field(default_factory=SlamConfig)
    """Parameters of the system."""

    def execute(self) -> int:
        """Run; returns the exit status."""
        calibrated = self.calibrated or self.calib is not None
        if self.prior != RENDERED:
            _require_folder(self.prior)
        if self.out is not None:
            check_folder(self.out, self.overwrite)
        source = open_source(
            self.source,
            start=self.start,
            stride=self.stride,
            max_frames=self.max_frames,
            depth_scale=self.depth_scale,
            fps=self.fps,
            calibration=self.calib,
            rectify=calibrated,
            center_principal_point=self.center_principal_point,
        )
        prior, name, about = self.open_prior(source)
        rendered = self.prior == RENDERED
        return run_and_report(
            source,
            prior,
            without_loop_closure(self.config) if self.no_loop_closure else self.config,
            self.out,
            calibrated=calibrated,
            overwrite=self.overwrite,
            min_confidence=self.min_confidence,
            about=self.choices() | {"prior": about},
            prior_name=name,
            advice=ADVICE_RENDERED if rendered else ADVICE_NETWORK,
            hints=self.hints(source),
        )

    def open_prior(self, source: Source) -> tuple[TwoViewPrior, str, dict[str, Any]]:
        """The prior asked for, what to call it, and its entry in ``run.json``.

        Raises:
            SourceError: there are no such weights, or the source lacks what the prior needs.
            CheckpointError: the weights cannot be used.
        """
        if self.prior == RENDERED:
            _require_geometry(self.source, source)
            name, about = rendered_name(self.noise), rendered_record(self.noise)
            return RenderedGeometryPrior(self.noise), name, about
        dtype = jnp.bfloat16 if self._is_bfloat16() else None
        about = {
            "kind": "mast3r",
            "weights": self.prior,
            "precision": "float32" if dtype is None else "bfloat16",
        }
        model = mast3r_jax.load(self.prior, dtype=dtype)
        retrieval = _load_retrieval(self.prior, model)
        return MASt3RPrior(model, retrieval), f"MASt3R from {self.prior}", about

    def _is_bfloat16(self) -> bool:
        if self.precision == "auto":
            return jax.default_backend() == "gpu"
        return self.precision == "bfloat16"

    def hints(self, source: Source) -> list[str]:
        """How the input was understood where its files do not tell and a mistake would hurt."""
        if self.prior != RENDERED:
            wanted = self.config.graph.loop_closure and not self.no_loop_closure
            if not wanted or has_retrieval(self.prior):
                return []
            return [
                "loops and relocalisation need retrieval weights; add them with `mast3r-slam "
                f"convert RETRIEVAL.pth {self.prior}`"
            ]
        scale = depth_scale_of(source)
        if self.depth_scale is not None or scale is None:
            return []
        return [f"depth: {scale:g} units per metre (TUM's); --depth-scale changes it"]

    def choices(self) -> dict[str, Any]:
        """What was asked for, for the record of the run."""
        chosen = dataclasses.asdict(self)
        for told_elsewhere in ("config", "out", "overwrite", "prior", "noise"):
            del chosen[told_elsewhere]
        return {
            name: str(value) if isinstance(value, pathlib.Path) else value
            for name, value in chosen.items()
        }


@dataclasses.dataclass(frozen=True)
class _BriefConfig(SlamConfig):
    edge_capacity: tyro.conf.Suppress[int] = SlamConfig.edge_capacity
    match: tyro.conf.Suppress[MatchConfig] = dataclasses.field(default_factory=MatchConfig)
    tracking: tyro.conf.Suppress[TrackingConfig] = dataclasses.field(default_factory=TrackingConfig)
    graph: tyro.conf.Suppress[GraphConfig] = dataclasses.field(default_factory=GraphConfig)
    retrieval: tyro.conf.Suppress[RetrievalConfig] = dataclasses.field(
        default_factory=RetrievalConfig
    )
    relocalization: tyro.conf.Suppress[RelocalizationConfig] = dataclasses.field(
        default_factory=RelocalizationConfig
    )


@dataclasses.dataclass(frozen=True)
class BriefRun(Run):
    """``Run`` as its help shows it: without the parameters that few will ever touch."""

    center_principal_point: tyro.conf.Suppress[bool] = True
    noise: tyro.conf.Suppress[GeometryNoise] = dataclasses.field(default_factory=GeometryNoise)
    config: _BriefConfig = dataclasses.field(default_factory=_BriefConfig)
    """Parameters of the system; all others: `mast3r-slam run --help-all`."""


def run_defaults(cls: type[Run], preset: str) -> Run:
    """What the options of ``run`` start from with ``--preset``; source and prior are missing.

    Raises:
        SourceError: the preset cannot be read.
    """
    values = read_preset(preset)
    config = _BriefConfig if issubclass(cls, BriefRun) else SlamConfig
    names = [field.name for field in dataclasses.fields(SlamConfig)]
    defaults = cls(
        source="",
        prior="",
        preset=preset,
        stride=values.stride,
        calibrated=values.calibrated,
        center_principal_point=values.center_principal_point,
        config=config(**{name: getattr(values.config, name) for name in names}),  # type: ignore[arg-type]
    )
    for name in ("source", "prior"):
        # How tyro is told that a field has no default; it is no value of the field's type.
        object.__setattr__(defaults, name, tyro.MISSING)
    return defaults


def _load_retrieval(weights: str, model: mast3r_jax.MASt3R) -> RetrievalModel | None:
    """The retrieval model beside the network's weights, None if there is none."""
    if not has_retrieval(weights):
        return None
    retrieval = load_retrieval(weights)
    if retrieval.token_dim != model.config.enc_dim:
        raise mast3r_jax.CheckpointError(
            f"{weights}: its retrieval weights read {retrieval.token_dim} channels but its network "
            f"makes {model.config.enc_dim}; convert the retrieval checkpoint of this network"
        )
    return retrieval


def _require_folder(weights: str) -> None:
    path = pathlib.Path(weights)
    if path.is_file():
        if (path.parent / "config.json").is_file() and path.suffix == ".safetensors":
            raise SourceError(f"{path}: is one file of the weights; pass the folder {path.parent}")
        raise SourceError(
            f"{path}: is a file, not a folder of converted weights; convert it first: "
            f"mast3r-slam convert {path} {path.with_suffix('').name}-jax"
        )
    if not path.exists() and weights not in presets():
        raise SourceError(
            f"{weights}: no such weights; convert published ones with "
            "`mast3r-slam convert FILE OUT`, or say --prior rendered for a source with "
            "depth, poses and intrinsics"
        )
    missing = [name for name in (WEIGHTS, CONFIG) if not (path / name).is_file()]
    if path.is_dir() and missing:
        raise SourceError(
            f"{path}: no checkpoint folder, it has no {' and no '.join(missing)}; published "
            "weights are converted with `mast3r-slam convert FILE OUT`"
        )


def _require_geometry(location: str, source: Source) -> None:
    """A look at the first frame: refusing now is cheaper than after opening and compiling all."""
    first = next(iter(source), None)
    if first is None:
        return
    has = {"depth": first.depth, "poses": first.T_WC, "intrinsics": first.K}
    missing = [name for name, value in has.items() if value is None]
    if missing:
        raise SourceError(
            f"{location}: --prior rendered needs {', '.join(missing)}, which this source does not "
            "have; pass a folder of MASt3R weights instead"
        )
