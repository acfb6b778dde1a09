"""``python -m slam.cli`` is ``mast3r-slam``."""

import sys

from slam.cli.main import main

sys.exit(main())
