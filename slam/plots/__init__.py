"""Pictures of a run: the trajectory, the map from above, the keyframes, what the matcher saw.

Drawn with matplotlib's object interface onto a figure of its own: no global state, no display, and
safe beside other threads. Files and notebooks show the same pictures: ``save_picture`` writes one,
and as the value of a notebook's cell it shows itself.
"""

from slam.plots.style import Picture as Picture
from slam.plots.style import save_picture as save_picture
from slam.plots.views import plot_panels as plot_panels
from slam.plots.views import plot_views as plot_views
from slam.plots.world import TrajectoryScene as TrajectoryScene
from slam.plots.world import draw_from_above as draw_from_above
from slam.plots.world import plot_map as plot_map
from slam.plots.world import plot_trajectory as plot_trajectory
from slam.plots.world import trajectory_scene as trajectory_scene
