"""Dense matching of two pointmaps."""

from ops.matching.api import iterative_projection as iterative_projection
from ops.matching.api import match as match
from ops.matching.api import refine_matches as refine_matches
from ops.matching.statistics import unique_fraction as unique_fraction
from ops.matching.statistics import valid_fraction as valid_fraction
from ops.matching.types import MatchConfig as MatchConfig
from ops.matching.types import Matches as Matches
from ops.matching.types import Projection as Projection
