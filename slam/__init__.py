"""The SLAM system: an immutable map, a pure step, and the runner at its rim."""

from slam.clip import Clip as Clip
from slam.clip import run_clip as run_clip
from slam.config import SlamConfig as SlamConfig
from slam.config import TrackingConfig as TrackingConfig
from slam.decisions import Decisions as Decisions
from slam.io.frames import Source as Source
from slam.io.frames import SourceError as SourceError
from slam.io.frames import SourceFrame as SourceFrame
from slam.io.iterable import IterableSource as IterableSource
from slam.io.open_source import open_source as open_source
from slam.losses import map_loss as map_loss
from slam.losses import trajectory_loss as trajectory_loss
from slam.pipeline import step as step
from slam.priors import GeometryNoise as GeometryNoise
from slam.priors import MASt3RPrior as MASt3RPrior
from slam.priors import RenderedGeometryPrior as RenderedGeometryPrior
from slam.reconstruction import Reconstruction as Reconstruction
from slam.runner import run as run
from slam.state import Mode as Mode
from slam.state import NoiseModel as NoiseModel
from slam.state import SlamState as SlamState
from slam.state import StepOutput as StepOutput
from slam.state import init_state as init_state
from slam.types import Frame as Frame
from slam.types import TwoViewPrior as TwoViewPrior
