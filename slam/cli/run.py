"""``mast3r-slam run SOURCE``: the system on the user's own images."""

import contextlib
import dataclasses
import math
import pathlib
from typing import Annotated, Any

import tyro

from mast3r_jax.retrieval import has_retrieval
from ops import MatchConfig
from slam.cli.options import (
    Count,
    DepthScale,
    EarlierRun,
    File,
    Flag,
    Folder,
    Number,
    PresetName,
    without_loop_closure,
)
from slam.cli.prior import (
    RENDERED,
    ChosenPrior,
    Precision,
    PriorName,
    chosen_or_default,
    network_prior,
    rendered_prior,
    require_weights,
    trained_size,
    weights_folder,
)
from slam.cli.session import Session, run_and_report
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
from slam.priors.rendered import GeometryNoise
from slam.snapshot import Observer


@dataclasses.dataclass(frozen=True)
class Run:
    """Reconstruct a video, images, a data set, a camera's view, or a made-up room."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Video file, folder of images or of a data set (TUM RGB-D, ETH3D, EuRoC, 7-Scenes, Replica,
    ScanNet), `webcam:0`, `realsense:`, `rtsp://...`, or `procedural:room?seed=3&frames=150`."""
    prior: PriorName = None
    """Folder made by `mast3r-slam convert` or `train`, or `rendered`: the source's own depth and
    poses, with errors such as --noise.depth 0.01; see --help-all."""
    preset: PresetName = "base"
    """Values to start from: base, calib, eval_calib, eval_no_calib, eth3d, or an original YAML."""
    out: Folder = None
    """Folder for the results."""
    overwrite: Flag = False
    """Replace the results of an earlier run in --out."""
    resume: EarlierRun = None
    """Go on with the unfinished run in this folder, with its own settings: no other option, and no
    SOURCE, is given."""
    map: EarlierRun = None
    """Begin with the map of the run in this folder: the camera looks for its place in it."""
    no_map: Flag = False
    """Do not write the map that later runs could begin with; it is the largest of the results."""
    checkpoint_seconds: float = 60.0
    """A killed run loses at most about so much; 0: checkpoints after every frame."""
    viewer: Flag = False
    """Show the map in the browser while it grows."""
    viewer_port: int = 8080
    """Where the page is served, to this machine only: http://localhost:8080."""
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
    precision: Precision = "auto"
    """Arithmetic of the network; auto: bfloat16 on a GPU, float32 on a CPU."""
    min_confidence: float = 1.5
    """Points of map.ply are more confident than this."""
    noise: GeometryNoise = dataclasses.field(default_factory=GeometryNoise)
    """With --prior rendered: what it gets wrong."""
    config: SlamConfig = dataclasses.field(default_factory=SlamConfig)
    """Parameters of the system."""
    arguments: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The command line that this is, for going on with the run."""

    def execute(self) -> int:
        """Run; returns the exit status."""
        calibrated = self.calibrated or self.calib is not None
        if self.chosen != RENDERED:
            require_weights(self.chosen)
        if not (math.isfinite(self.checkpoint_seconds) and self.checkpoint_seconds >= 0):
            raise SourceError(
                f"--checkpoint-seconds {self.checkpoint_seconds:g}: must be 0 or more"
            )
        if self.out is not None and self.resume is None:
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
        prior = self.open_prior(source)
        with contextlib.ExitStack() as stack:
            observer, hints = None, self.hints(source)
            if self.viewer:
                from slam.viewer import Viewer

                observer = stack.enter_context(Viewer(port=self.viewer_port))
                hints.append(f"open {observer.url} in a browser to look on")
            return run_and_report(
                source,
                prior,
                without_loop_closure(self.config) if self.no_loop_closure else self.config,
                self.session(observer),
                calibrated=calibrated,
                min_confidence=self.min_confidence,
                about=self.choices(),
                hints=hints,
            )

    def session(self, observer: Observer | None) -> Session:
        """What is kept of the run, and where, and who looks on."""
        return Session(
            out=self.out if self.resume is None else self.resume,
            overwrite=self.overwrite,
            resume=self.resume is not None,
            map=self.map,
            keep_map=not self.no_map,
            checkpoint_seconds=self.checkpoint_seconds,
            arguments=self.arguments,
            observer=observer,
        )

    @property
    def chosen(self) -> str:
        """What ``prior`` says, or the network that comes with the package.

        Raises:
            SourceError: nothing was asked for, and there is none.
        """
        return chosen_or_default(self.prior)

    def open_prior(self, source: Source) -> ChosenPrior:
        """The prior to use.

        Raises:
            SourceError: the source lacks what the prior needs.
            CheckpointError: the weights cannot be used.
        """
        if self.chosen == RENDERED:
            _require_geometry(self.source, source)
            return rendered_prior(self.noise)
        return network_prior(self.chosen, self.precision)

    def hints(self, source: Source) -> list[str]:
        """How the input was understood where its files do not tell and a mistake would hurt."""
        if self.chosen != RENDERED:
            return self._hints_on_weights()
        scale = depth_scale_of(source)
        if self.depth_scale is not None or scale is None:
            return []
        return [f"depth: {scale:g} units per metre (TUM's); --depth-scale changes it"]

    def _hints_on_weights(self) -> list[str]:
        hints = []
        size = trained_size(self.chosen)
        if size is not None and max(size) != self.config.size:
            hints.append(
                f"the network was trained on images of {size[0]}x{size[1]}; it is at its best with "
                f"--config.size {max(size)}"
            )
        wanted = self.config.graph.loop_closure and not self.no_loop_closure
        if wanted and not has_retrieval(weights_folder(self.chosen)):
            hints.append(
                "loops and relocalisation need retrieval weights; add them with `mast3r-slam "
                f"convert RETRIEVAL.pth {self.chosen}`"
            )
        return hints

    def choices(self) -> dict[str, Any]:
        """What was asked for, for the record of the run."""
        chosen = dataclasses.asdict(self)
        for told_elsewhere in (
            "config",
            "out",
            "overwrite",
            "resume",
            "arguments",
            "prior",
            "noise",
        ):
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


def run_defaults(cls: type[Run], preset: str, prior: str | None = None) -> Run:
    """What the options of ``run`` start from with ``--preset`` and ``--prior``; no source yet.

    Where the preset leaves the images' size as it is, it is that which the network of ``prior`` was
    trained on, if its card tells.

    Raises:
        SourceError: the preset cannot be read.
        CheckpointError: the card cannot be read.
    """
    values = read_preset(preset)
    config = _BriefConfig if issubclass(cls, BriefRun) else SlamConfig
    fields = {f.name: getattr(values.config, f.name) for f in dataclasses.fields(SlamConfig)}
    trained = trained_size(prior)
    if trained is not None and fields["size"] == SlamConfig.size:
        fields["size"] = max(trained)
    defaults = cls(
        source="",
        preset=preset,
        stride=values.stride,
        calibrated=values.calibrated,
        center_principal_point=values.center_principal_point,
        config=config(**fields),  # type: ignore[arg-type]
    )
    # How tyro is told that a field has no default; it is no value of the field's type.
    object.__setattr__(defaults, "source", tyro.MISSING)
    return defaults


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
