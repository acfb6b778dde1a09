"""The original's configurations by name, and its YAML files as they are.

Names, keys and values are those of MASt3R-SLAM's ``config/*.yaml``.
"""

import dataclasses
import difflib
import math
import os
import pathlib
import typing
from collections.abc import Mapping
from typing import Any

from slam.config import RelocalizationConfig, SlamConfig
from slam.io.frames import SourceError
from slam.io.yaml_file import Entry, read_yaml


@dataclasses.dataclass(frozen=True)
class Preset:
    """A configuration, and what the original's files tell beyond it; defaults are ``base``."""

    config: SlamConfig = dataclasses.field(default_factory=SlamConfig)
    """Parameters of the system."""
    calibrated: bool = False
    """Track with the intrinsics."""
    stride: int = 1
    """Use every n-th frame."""
    center_principal_point: bool = True
    """When calibrated, move the principal point into the centre of the image."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride={self.stride} must be at least 1")


PRESETS: Mapping[str, Preset] = {
    "base": Preset(),
    "calib": Preset(calibrated=True, stride=2),
    "eval_calib": Preset(calibrated=True, stride=2),
    "eval_no_calib": Preset(stride=2),
    "eth3d": Preset(
        config=SlamConfig(relocalization=RelocalizationConfig(strict=False)),
        calibrated=True,
        center_principal_point=False,
    ),
}
"""By the names of the original's files. ``calib`` and ``eval_calib`` differ there in
``single_thread`` only, which has no effect here."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "use_calib": ("calibrated",),
    "dataset.subsample": ("stride",),
    "dataset.center_principle_point": ("center_principal_point",),
    "matching.max_iter": ("config.match.max_iterations",),
    "matching.lambda_init": ("config.match.lambda_init",),
    "matching.convergence_thresh": ("config.match.convergence",),
    "matching.dist_thresh": ("config.match.max_distance",),
    "matching.radius": ("config.match.radius",),
    "matching.dilation_max": ("config.match.dilation",),
    "tracking.min_match_frac": ("config.tracking.min_match_fraction",),
    "tracking.C_conf": ("config.tracking.min_point_confidence",),
    "tracking.Q_conf": ("config.tracking.min_descriptor_confidence",),
    "tracking.match_frac_thresh": ("config.tracking.keyframe_threshold",),
    "tracking.max_iters": (
        "config.tracking.rays.max_iterations",
        "config.tracking.pixels.max_iterations",
    ),
    "tracking.rel_error": ("config.tracking.rays.rel_error", "config.tracking.pixels.rel_error"),
    "tracking.delta_norm": ("config.tracking.rays.delta_norm", "config.tracking.pixels.delta_norm"),
    "tracking.huber": ("config.tracking.rays.huber", "config.tracking.pixels.huber"),
    "tracking.sigma_ray": ("config.tracking.rays.sigma_ray",),
    "tracking.sigma_dist": ("config.tracking.rays.sigma_dist",),
    "tracking.sigma_pixel": ("config.tracking.pixels.sigma_pixel",),
    "tracking.sigma_depth": ("config.tracking.pixels.sigma_depth",),
    "tracking.pixel_border": ("config.tracking.pixels.pixel_border",),
    "tracking.depth_eps": ("config.tracking.pixels.depth_eps",),
    "tracking.filtering_mode": ("config.tracking.fusion",),
    "tracking.filtering_score": ("config.tracking.fusion_score",),
    "local_opt.min_match_frac": ("config.graph.min_match_fraction",),
    "local_opt.C_conf": ("config.graph.min_point_confidence",),
    "local_opt.Q_conf": ("config.graph.min_descriptor_confidence",),
    "local_opt.max_iters": (
        "config.graph.rays.max_iterations",
        "config.graph.pixels.max_iterations",
    ),
    "local_opt.delta_norm": ("config.graph.rays.delta_norm", "config.graph.pixels.delta_norm"),
    "local_opt.sigma_ray": ("config.graph.rays.sigma_ray",),
    "local_opt.sigma_dist": ("config.graph.rays.sigma_dist",),
    "local_opt.sigma_pixel": ("config.graph.pixels.sigma_pixel",),
    "local_opt.sigma_depth": ("config.graph.pixels.sigma_depth",),
    "local_opt.pixel_border": ("config.graph.pixels.pixel_border",),
    "local_opt.depth_eps": ("config.graph.pixels.depth_eps",),
    "retrieval.k": ("config.retrieval.num_candidates",),
    "retrieval.min_thresh": ("config.retrieval.min_score",),
    "reloc.min_match_frac": ("config.relocalization.min_match_fraction",),
    "reloc.strict": ("config.relocalization.strict",),
}
"""Which fields of ``Preset`` each key of the original's files sets."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "single_thread": "the result never depends on how threads are scheduled",
    "tracking.sigma_point": "belongs to an error that the original does not use either",
    "local_opt.sigma_point": "belongs to an error that the original does not use either",
    "local_opt.window_size": "the original reads it and uses it nowhere: all keyframes take part",
    "local_opt.use_cuda": "JAX chooses the device",
}
"""Keys of the original that are read over, and why."""

ONLY_ONE: Mapping[str, str] = {
    "dataset.img_downsample": "choose a smaller working size instead, such as --config.size 256",
    "local_opt.pin": "the first keyframe, and no other, is held fixed",
}
"""Keys of the original for which 1, its own value, is the only one supported, and why."""

_KEYS = (*FIELDS, *WITHOUT_EFFECT, *ONLY_ONE)
_SECTIONS = {key.partition(".")[0] for key in _KEYS if "." in key}


def read_preset(name_or_path: str | os.PathLike[str]) -> Preset:
    """A preset by the original's name, or from a YAML file in the original's form.

    Keys that a file leaves out keep the values of the file it inherits from, or else of ``base``.
    That parent is looked for from the file's folder, in it by name alone, and from the working
    folder (as in the original); if there is none, the preset of that name is meant.

    Raises:
        SourceError: there is no such preset or file, a key is unknown, a value is of the wrong
            kind or out of range, or files inherit in a circle; the message names file and line.
    """
    name = os.fspath(name_or_path)
    if name in PRESETS:
        return PRESETS[name]
    path = pathlib.Path(name)
    if path.is_dir():
        raise SourceError(f"{name}: is a folder; pass one of the YAML files in it")
    if not path.exists():
        raise SourceError(
            f"{name}: neither a preset nor a file; presets are {', '.join(PRESETS)}, or pass a "
            "YAML file in the form of the original's"
        )
    return _read_file(path, ())


def _read_file(path: pathlib.Path, heirs: tuple[pathlib.Path, ...]) -> Preset:
    entries = read_yaml(path)
    inherit = entries.pop("inherit", None)
    preset = Preset()
    if inherit is not None:
        preset = _read_parent(path, inherit, (*heirs, path.resolve()))
    for key, entry in entries.items():
        preset = _set(preset, f"{path}:{entry.line}", key, entry.value)
    return preset


def _read_parent(path: pathlib.Path, inherit: Entry, heirs: tuple[pathlib.Path, ...]) -> Preset:
    where, value = f"{path}:{inherit.line}", inherit.value
    if not isinstance(value, str) or not value:
        raise SourceError(f"{where}: inherit: expected the path of a YAML file, found {value!r}")
    named = pathlib.Path(value)
    for parent in (path.parent / named, path.parent / named.name, named):
        if parent.is_file():
            if parent.resolve() in heirs:
                raise SourceError(f"{where}: inherits from {parent}, which inherits from it")
            return _read_file(parent, heirs)
    if named.stem in PRESETS:
        return PRESETS[named.stem]
    raise SourceError(
        f"{where}: no file {value} to inherit from; put {named.name} beside {path.name}"
    )


def _set(preset: Preset, where: str, key: str, value: Any) -> Preset:
    if key in _SECTIONS and value is None:
        return preset
    if key not in _KEYS:
        raise SourceError(f"{where}: unknown key '{key}'; {_nearest(key)}")
    if key in ONLY_ONE:
        if isinstance(value, bool) or value != 1:
            raise SourceError(f"{where}: {key}: only 1 is supported, not {value}; {ONLY_ONE[key]}")
        return preset
    for place in FIELDS.get(key, ()):
        path = place.split(".")
        try:
            preset = _replace(preset, path, _convert(value, _kind(Preset, path)))
        except ValueError as error:
            raise SourceError(f"{where}: {key}: {error}") from None
    return preset


def _nearest(key: str) -> str:
    """The known keys most like this one, by their whole or their last name."""
    by_name = {known.rpartition(".")[2]: known for known in reversed(_KEYS)}
    near = difflib.get_close_matches(key, _KEYS, 3)
    near += [by_name[n] for n in difflib.get_close_matches(key.rpartition(".")[2], by_name, 3)]
    if key in _SECTIONS:
        near = [known for known in _KEYS if known.startswith(f"{key}.")][:3]
    if not near:
        return f"known keys are in {', '.join(sorted(_SECTIONS))}"
    return f"did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?"


def _kind(cls: type, path: list[str]) -> Any:
    """The declared type of a nested field."""
    for name in path:
        cls = next(field.type for field in dataclasses.fields(cls) if field.name == name)  # type: ignore[assignment]
    return cls


def _convert(value: Any, kind: Any) -> Any:
    """The value as a field of that type; raises ``ValueError`` where that would guess."""
    choices = typing.get_args(kind)
    if choices:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, found {value!r}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"expected True or False, found {value!r}")
        return value
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not math.isfinite(value) or (kind is int and value != int(value)):
        article = "a whole number" if kind is int else "a number"
        raise ValueError(f"expected {article}, found {value!r}")
    return kind(value)


def _replace(record: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    if rest:
        value = _replace(getattr(record, name), rest, value)
    return dataclasses.replace(record, **{name: value})
