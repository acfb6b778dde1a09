"""What the edges of a pose graph say about the poses."""

from ops.edge_system.api import linearize_edges as linearize_edges
from ops.edge_system.factors import FactorConfig as FactorConfig
from ops.edge_system.factors import FactorNoise as FactorNoise
from ops.edge_system.factors import PixelFactorConfig as PixelFactorConfig
from ops.edge_system.factors import RayFactorConfig as RayFactorConfig
from ops.edge_system.types import EdgeBlocks as EdgeBlocks
from ops.edge_system.types import Edges as Edges
from ops.edge_system.types import pack_valid as pack_valid
from ops.edge_system.types import unpack_valid as unpack_valid
