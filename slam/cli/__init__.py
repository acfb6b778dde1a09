"""The ``mast3r-slam`` command: the one place where all packages meet."""

from slam.cli.main import main as main
