"""Types of options that several commands share."""

import pathlib
from typing import Annotated

import tyro

Flag = tyro.conf.FlagCreatePairsOff[bool]
"""An option without a value."""
Folder = Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: a new one under outputs/)"),
]
"""Where to write."""
File = Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: what the source tells)"),
]
"""What to read beside the source."""
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")]
"""How many to take."""
Number = Annotated[
    float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: what the source tells)")
]
"""A number the source may tell itself."""
DepthScale = Annotated[
    float | None,
    tyro.conf.arg(metavar="X", help_behavior_hint="(default: 5000; 1000 for millimetres)"),
]
"""A number the source cannot tell; TUM's own is ``slam.io.tum.TUM_DEPTH_SCALE``."""
