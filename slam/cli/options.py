"""Options that several commands share: their types, and what they mean for the configuration."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from slam.config import SlamConfig

Flag = tyro.conf.FlagCreatePairsOff[bool]
"""An option without a value."""
Folder = Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: a new one under outputs/)"),
]
"""Where to write."""
EarlierRun = Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: none)"),
]
"""Results of another run."""
File = Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)"),
]
"""What to read beside the source."""
PresetName = Annotated[
    str, tyro.conf.arg(metavar="NAME|FILE", help_behavior_hint="(default: base)")
]
"""Where the values of other options come from; see ``slam.presets.read_preset``."""
Count = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: all)")]
"""How many to take."""
Size = Annotated[
    int | None,
    tyro.conf.arg(metavar="N", help_behavior_hint="(default: the network's, or 128)"),
]
"""Long side of images that are made to order."""
Number = Annotated[
    float | None, tyro.conf.arg(metavar="X", help_behavior_hint="(default: what the source tells)")
]
"""A number the source may tell itself."""
DepthScale = Annotated[
    float | None,
    tyro.conf.arg(metavar="X", help_behavior_hint="(default: 5000; 1000 for millimetres)"),
]
"""A number the source cannot tell; TUM's own is ``slam.io.tum.TUM_DEPTH_SCALE``."""


def without_loop_closure(config: SlamConfig) -> SlamConfig:
    """The same configuration, with ``--no-loop-closure``."""
    return dataclasses.replace(config, graph=dataclasses.replace(config.graph, loop_closure=False))
