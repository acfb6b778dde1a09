"""How a reconstruction shows itself: in a terminal, in a notebook, as figures.

What draws is imported when it is asked for: matplotlib is slow to load, and many runs draw nothing.
"""

from typing import TYPE_CHECKING, cast, overload

from slam.verdict import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from slam.notebook import MapView
    from slam.plots import Picture
    from slam.reconstruction import Reconstruction


class Displayed:
    """What ``Reconstruction`` inherits to be looked at."""

    @property
    def _result(self) -> "Reconstruction":
        return cast("Reconstruction", self)

    def __repr__(self) -> str:
        return one_line(self._result)

    def _repr_html_(self) -> str:
        from slam.notebook import table_and_picture

        return table_and_picture(self._result)

    @overload
    def plot_trajectory(self, ax: None = None, submap: int | None = None) -> "Picture": ...
    @overload
    def plot_trajectory(self, ax: "Axes", submap: int | None = None) -> "Axes": ...
    def plot_trajectory(
        self, ax: "Axes | None" = None, submap: int | None = None
    ) -> "Picture | Axes":
        """Draw the trajectory of one submap, by default the largest, aligned to ground truth.

        Args:
            ax: axes of matplotlib to draw the view from above onto; they are given back.
            submap: number of the submap.

        Returns:
            Without ``ax``, a figure of its own that also has the view from the side.
        """
        from slam import pictures, plots

        scene = pictures.trajectory_scene(self._result, submap)
        if ax is None:
            return plots.plot_trajectory(scene)
        plots.draw_from_above(ax, scene)
        return ax

    def plot_map(self, min_confidence: float = 1.5, submap: int | None = None) -> "Picture":
        """Draw the point cloud of one submap, by default the largest, from above."""
        from slam import pictures

        cloud = self._result.point_cloud(min_confidence, submap)
        return pictures.map_from_above(self._result, cloud, submap)

    def plot_keyframes(
        self, limit: int = 12, depth: bool = True, submap: int | None = None
    ) -> "Picture":
        """Draw keyframes of one submap, by default the largest, each above its depth.

        Args:
            limit: show at most so many, evenly spread over time.
            depth: show the depth of their pointmaps.
            submap: number of the submap.
        """
        from slam import pictures

        return pictures.keyframe_sheet(self._result, limit, depth, submap)

    def show(
        self, height: int = 480, standalone: bool = False, submap: int | None = None
    ) -> "MapView":
        """The map to turn around in a notebook; see ``slam.notebook.show_map``."""
        from slam.notebook import show_map

        return show_map(self._result, height, standalone, submap)
