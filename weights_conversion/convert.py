"""A published MASt3R state dict, as numpy arrays, to a network of this project.

The conversion is checked both ways before anything is built: every tensor is used or ignored for
a stated reason, every parameter is filled exactly once, with the right shape and finite numbers;
all the problems come in one error.
"""

import dataclasses
import itertools
import logging
import re
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import DTypeLike

from mast3r_jax.checkpoint import build, parameter_specs
from mast3r_jax.config import ConfigError, MASt3RConfig
from mast3r_jax.model import MASt3R
from weights_conversion.inert_pickle import printable
from weights_conversion.rules import IGNORED, RULES, Layout, canonical

HEAD_WIDTH = 64
"""Channels of an attention head in every published CroCo, DUSt3R and MASt3R network."""
SHOWN = 20
"""Problems spelled out in an error; the rest is counted."""

log = logging.getLogger(__name__)


class ConversionError(ValueError):
    """Tensors that are not a MASt3R network; the message lists every problem found."""


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One source tensor and the slice of a parameter it fills."""

    source: str
    target: str
    index: tuple[int, ...]
    layout: Layout


def convert_mast3r(
    tensors: Mapping[str, np.ndarray],
    config: MASt3RConfig | None = None,
    *,
    enc_heads: int | None = None,
    dec_heads: int | None = None,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MASt3R:
    """The network whose published state dict ``tensors`` is, by name.

    Sizes are inferred from the shapes (``infer_config``, to which the head counts go) unless
    ``config`` gives them. ``dtype`` and ``param_dtype`` are those of ``MASt3R``. A state dict
    without ``dec_blocks2`` (a two-view network before fine-tuning) gives both decoders the weights
    of ``dec_blocks``, with a warning in the log. ``progress(done, total)`` is called after every
    step; a tensor takes two, the check of its numbers and their copying.

    Raises:
        ConversionError: if the tensors are not exactly such a network, with every problem named.
    """
    if config is None:
        config = infer_config(tensors, enc_heads=enc_heads, dec_heads=dec_heads)
    assignments = plan_conversion(tensors, config)
    steps = itertools.count(1)

    def step() -> None:
        if progress is not None:
            progress(next(steps), 2 * len(assignments))

    not_finite: list[str] = []
    pieces: dict[str, list[Assignment]] = {}
    for assignment in assignments:
        if not np.isfinite(tensors[assignment.source]).all():
            not_finite.append(f"{assignment.source} holds numbers that are not finite")
        pieces.setdefault(assignment.target, []).append(assignment)
        step()
    _raise(not_finite, "these weights are damaged")
    specs = parameter_specs(config, dtype=dtype, param_dtype=param_dtype)

    def parameter(name: str) -> np.ndarray:
        value = np.empty(specs[name].shape, specs[name].dtype)
        for piece in pieces[name]:
            value[piece.index] = piece.layout.apply(tensors[piece.source])
            step()
        return value

    return build(config, parameter, dtype=dtype, param_dtype=param_dtype)


def infer_config(
    tensors: Mapping[str, np.ndarray],
    *,
    enc_heads: int | None = None,
    dec_heads: int | None = None,
) -> MASt3RConfig:
    """The sizes of the network a published state dict belongs to, from the shapes of its tensors.

    Two things leave no trace in shapes. The rotary base is taken to be the published 100. The
    numbers of attention heads are taken from ``enc_heads`` and ``dec_heads``, else from the
    published head width of 64.

    Raises:
        ConversionError: if a tensor that tells a size is missing or misshapen, if a width is no
            multiple of 64 and its number of heads is not given, or if the sizes contradict.
    """
    shapes = {canonical(name): tuple(value.shape) for name, value in tensors.items()}
    problems: list[str] = []

    def size(name: str, axis: int, ndim: int) -> int:
        shape = shapes.get(name)
        if shape is None:
            problems.append(f"missing tensor {name}")
        elif len(shape) != ndim:
            problems.append(f"{name} has shape {shape}, expected {ndim} axes")
        else:
            return shape[axis]
        return 0

    def depth(prefix: str) -> int:
        layers = {m[1] for name in shapes if (m := re.match(prefix + r"\.(\d+)\.", name))}
        if not layers:
            problems.append(f"no tensor is named {prefix}.*")
        return len(layers)

    def heads(part: str, width: int, given: int | None) -> int:
        if given is None and width % HEAD_WIDTH:
            problems.append(
                f"{part}_dim={width} is no multiple of the published head width {HEAD_WIDTH}, "
                f"so the number of heads is unknown: pass {part}_heads"
            )
        return given if given is not None else width // HEAD_WIDTH

    enc_dim = size("patch_embed.proj.weight", 0, 4)
    dec_dim = size("decoder_embed.weight", 0, 2)
    hidden = size("enc_blocks.0.mlp.fc1.weight", 0, 2)
    patch = size("patch_embed.proj.weight", 2, 4)
    local = size("downstream_head1.head_local_features.fc2.weight", 0, 2)
    dpt = "downstream_head1.dpt."
    sizes = {
        "enc_dim": enc_dim,
        "enc_depth": depth("enc_blocks"),
        "enc_heads": heads("enc", enc_dim, enc_heads),
        "dec_dim": dec_dim,
        "dec_depth": depth("dec_blocks"),
        "dec_heads": heads("dec", dec_dim, dec_heads),
        "mlp_ratio": hidden / max(enc_dim, 1),
        "patch_size": patch,
        "descriptor_dim": local // max(patch, 1) ** 2 - 1,
        "dpt_dim": size(dpt + "scratch.layer_rn.0.weight", 0, 4),
        "dpt_last_dim": size(dpt + "head.2.weight", 0, 4),
        "dpt_layer_dims": tuple(size(f"{dpt}act_postprocess.{k}.0.weight", 0, 4) for k in range(4)),
    }
    _raise(problems, "the sizes of the network cannot be told from these tensors")
    try:
        return MASt3RConfig(**sizes)
    except ConfigError as error:
        raise ConversionError(f"these tensors do not form a MASt3R network: {error}") from None


def heads_from_model_string(text: str) -> dict[str, int]:
    """``enc_heads`` and ``dec_heads`` as far as a published checkpoint's model string tells them.

    Published checkpoints describe their network by the Python expression that built it (under
    ``args``); it is searched for the two numbers, never evaluated.
    """
    found = re.findall(r"\b(enc|dec)_num_heads\s*=\s*(\d+)", text)
    return {f"{part}_heads": int(number) for part, number in found}


def plan_conversion(tensors: Mapping[str, np.ndarray], config: MASt3RConfig) -> list[Assignment]:
    """Which tensor fills what, after checking names and shapes both ways; builds nothing.

    Raises:
        ConversionError: with every tensor that is unknown, missing, misshapen, not of a floating
            type, or stored under two names with different numbers, in one message.
    """
    specs = parameter_specs(config)
    problems: list[str] = []
    assignments: list[Assignment] = []
    filled: dict[tuple[str, tuple[int, ...]], str] = {}
    for name, source in _once(tensors, problems).items():
        if any(pattern.fullmatch(name) for pattern, _ in IGNORED):
            continue
        placed = _place(name, specs, problems)
        if placed is None:
            continue
        target, index, layout = placed
        if placed[:2] in filled:
            problems.append(f"{source} and {filled[placed[:2]]} fill the same parameter")
        _check(source, tensors[source], specs[target].shape[len(index) :], layout, problems)
        filled[target, index] = source
        assignments.append(Assignment(source, target, index, layout))

    if not any(index[1:] == (1,) for _, index in filled):
        # Published two-view networks start from one decoder; as there, the second is a copy.
        log.warning("no tensor is named dec_blocks2.*: both views get the decoder dec_blocks")
        twins = [
            dataclasses.replace(a, index=(a.index[0], 1))
            for a in assignments
            if a.index[1:] == (0,)
        ]
        assignments += twins
        filled |= {(a.target, a.index): a.source for a in twins}

    for target, spec in specs.items():
        for index in np.ndindex(spec.shape[: _stacked_axes(target)]):
            if (target, index) not in filled:
                problems.append(f"missing tensor {_published_name(target, index)}")
    _raise(problems, "these tensors do not fit the network")
    return assignments


def _once(tensors: Mapping[str, np.ndarray], problems: list[str]) -> dict[str, str]:
    """Canonical name -> stored name; a tensor stored under two names must be the same twice."""
    seen: dict[str, str] = {}
    for name, value in tensors.items():
        other = seen.setdefault(canonical(name), name)
        if other != name and not np.array_equal(value, tensors[other]):
            problems.append(f"{other} and {name} must be the same tensor, but differ")
    return seen


def _place(name, specs, problems) -> tuple[str, tuple[int, ...], Layout] | None:
    for rule in RULES:
        matched = rule.match(name)
        if matched is None:
            continue
        target, index = matched
        if target not in specs:
            problems.append(f"unknown tensor {printable(name)}: the network has no such part")
            return None
        stacked = specs[target].shape[: len(index)]
        if any(i >= n for i, n in zip(index, stacked, strict=True)):
            problems.append(
                f"unknown tensor {printable(name)}: the network has {stacked[0]} such layers"
            )
            return None
        return target, index, rule.layout
    problems.append(f"unknown tensor {printable(name)}")
    return None


def _check(source, value, wanted: tuple[int, ...], layout: Layout, problems: list[str]) -> None:
    if not np.issubdtype(value.dtype, np.floating) and "float" not in value.dtype.name:
        problems.append(f"{source} is of type {value.dtype}, expected floating-point numbers")
    if value.ndim != layout.ndim:
        problems.append(f"{source} has shape {value.shape}, expected a {layout.name}")
        return
    # Layouts are judged on a stand-in of the same shape that takes no memory.
    try:
        shape = layout.apply(np.broadcast_to(np.float32(0), value.shape)).shape
    except ValueError as error:
        problems.append(f"{source} has a {error}, expected a {layout.name}")
        return
    if shape != wanted:
        problems.append(
            f"{source} ({layout.name}) has shape {value.shape}, which becomes {shape}; the "
            f"network's is {wanted}"
        )


def _stacked_axes(target: str) -> int:
    return 1 if target.startswith("encoder.blocks.") else 2 * target.startswith("decoder.blocks.")


def _published_name(target: str, index: tuple[int, ...]) -> str:
    """The published tensor that would fill a parameter, spelled back from the rules."""
    for rule in RULES:
        template = re.sub(r"\\\.", ".", rule.pattern.pattern)
        layer = str(index[0]) if index else ""
        twin = "2" if index[1:] == (1,) else ""
        template = template.replace("(?P<layer>[0-9]{1,4})", layer).replace("(?P<twin>2?)", twin)
        for head in "12":
            spelled = template.replace("(?P<head>[12])", head)
            for k in "01234":
                name = re.sub(r"\(\?P<k>\[[^]]*\]\)", k, spelled)
                if rule.match(name) == (target, index):
                    return name
    return f"for {target}"


def _raise(problems: list[str], what: str) -> None:
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ConversionError("\n  ".join([f"{what}:", *problems[:SHOWN], *more]))
