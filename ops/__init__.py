"""Pure numerics of dense visual SLAM: Sim(3), residuals, matching, solvers, fusion."""

from ops.xla_flags import instruct_cpu_compiler

instruct_cpu_compiler()  # before anything computes

from ops import asmk as asmk
from ops import lie_convert as lie_convert
from ops.cholesky import cholesky as cholesky
from ops.cholesky import solve_spd as solve_spd
from ops.edge_system import Edges as Edges
from ops.fusion import FUSION_MODES as FUSION_MODES
from ops.fusion import FusedPointmap as FusedPointmap
from ops.fusion import average_confidence as average_confidence
from ops.fusion import fuse as fuse
from ops.fusion import init_fused as init_fused
from ops.gauss_newton import gauss_newton as gauss_newton
from ops.matching import MatchConfig as MatchConfig
from ops.matching import Matches as Matches
from ops.matching import iterative_projection as iterative_projection
from ops.matching import match as match
from ops.matching import refine_matches as refine_matches
from ops.matching import unique_fraction as unique_fraction
from ops.pinhole import constrain_to_rays as constrain_to_rays
from ops.pose_graph import GraphSolution as GraphSolution
from ops.pose_graph import optimize_graph as optimize_graph
from ops.relative_pose import PixelFactorConfig as PixelFactorConfig
from ops.relative_pose import PoseSolution as PoseSolution
from ops.relative_pose import RayFactorConfig as RayFactorConfig
from ops.relative_pose import solve_relative_pose as solve_relative_pose
from ops.sim3 import Sim3 as Sim3
from ops.status import SolverStatus as SolverStatus
