"""Implementations of ``TwoViewPrior``: the MASt3R network, and a renderer of known geometry."""

from slam.priors.mast3r import MASt3RPrior as MASt3RPrior
from slam.priors.rendered import GeometryNoise as GeometryNoise
from slam.priors.rendered import RenderedGeometryPrior as RenderedGeometryPrior
