"""The map in a browser: while it grows, or when it is done."""

from slam.viewer.viewer import Viewer as Viewer
