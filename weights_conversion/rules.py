"""The table that carries a published MASt3R state dict over to this project's parameters.

A rule is an anchored pattern over the published name, the parameter it fills, and the change of
layout. Named groups choose the slice of a stacked parameter: ``layer`` its first axis, ``twin``
(the ``2`` of ``dec_blocks2``) its second; ``head`` and ``k`` are spelled into the parameter's name.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped


@dataclasses.dataclass(frozen=True)
class Layout:
    """A change of layout from PyTorch's to ours, for arrays of ``ndim`` axes."""

    name: str
    ndim: int
    apply: Callable[[Shaped[np.ndarray, "..."]], Shaped[np.ndarray, "..."]]


VECTOR = Layout("vector", 1, lambda x: x)
LINEAR = Layout("linear, out x in", 2, lambda x: x.T)
CONV = Layout("convolution, out x in x rows x columns", 4, lambda x: x.transpose(2, 3, 1, 0))
POINTWISE = Layout("1 x 1 convolution", 4, lambda x: _only_pixel(x).T)
PATCHES = Layout(
    "patch convolution, out x 3 x rows x columns",
    4,
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
)
# PyTorch does not flip the kernel: out[s*i + a] += x[i] @ w[:, :, a].
TRANSPOSED = Layout(
    "transposed convolution, in x out x rows x columns", 4, lambda x: x.transpose(0, 2, 3, 1)
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Source names that match ``pattern`` fill ``target`` after ``layout``."""

    pattern: re.Pattern[str]
    target: str
    layout: Layout

    def match(self, name: str) -> tuple[str, tuple[int, ...]] | None:
        """The parameter a source tensor fills and the index within it, if the rule applies."""
        found = self.pattern.fullmatch(name)
        if found is None:
            return None
        groups = found.groupdict()
        index = () if "layer" not in groups else (int(groups["layer"]),)
        if "twin" in groups:
            index += (1 if groups["twin"] else 0,)
        # The dense head's levels count from 1 in "refinenet1", from 0 in "act_postprocess.0".
        level = int(groups.get("k", 0))
        level -= "refinenet" in name
        return self.target.format(level=level, **groups), index


def _only_pixel(x: Shaped[np.ndarray, "out in rows columns"]) -> Shaped[np.ndarray, "out in"]:
    if x.shape[2:] != (1, 1):
        raise ValueError(f"kernel of {x.shape[2]} x {x.shape[3]} pixels")
    return x[:, :, 0, 0]


def _layer(source: str, target: str, layout: Layout) -> list[Rule]:
    return [
        Rule(re.compile(source + r"\.weight"), target + ".kernel", layout),
        Rule(re.compile(source + r"\.bias"), target + ".bias", VECTOR),
    ]


def _norm(source: str, target: str) -> list[Rule]:
    return [
        Rule(re.compile(source + r"\.weight"), target + ".scale", VECTOR),
        Rule(re.compile(source + r"\.bias"), target + ".bias", VECTOR),
    ]


_ENC, _enc = r"enc_blocks\.(?P<layer>[0-9]{1,4})", "encoder.blocks"
_DEC, _dec = r"dec_blocks(?P<twin>2?)\.(?P<layer>[0-9]{1,4})", "decoder.blocks"
_HEAD, _head = r"downstream_head(?P<head>[12])", "head_{head}"
_DPT, _dpt = _HEAD + r"\.dpt", _head + ".dense"
_REFINE, _fusion = _DPT + r"\.scratch\.refinenet(?P<k>[1-4])", _dpt + ".fusion.{level}"

RULES: tuple[Rule, ...] = (
    *_layer(r"patch_embed\.proj", "encoder.patch_embed", PATCHES),
    *_norm(_ENC + r"\.norm1", _enc + ".norm1"),
    *_layer(_ENC + r"\.attn\.qkv", _enc + ".attention.qkv", LINEAR),
    *_layer(_ENC + r"\.attn\.proj", _enc + ".attention.proj", LINEAR),
    *_norm(_ENC + r"\.norm2", _enc + ".norm2"),
    *_layer(_ENC + r"\.mlp\.fc1", _enc + ".mlp.fc1", LINEAR),
    *_layer(_ENC + r"\.mlp\.fc2", _enc + ".mlp.fc2", LINEAR),
    *_norm(r"enc_norm", "encoder.norm"),
    *_layer(r"decoder_embed", "decoder.embed", LINEAR),
    *_norm(_DEC + r"\.norm1", _dec + ".norm1"),
    *_layer(_DEC + r"\.attn\.qkv", _dec + ".self_attention.qkv", LINEAR),
    *_layer(_DEC + r"\.attn\.proj", _dec + ".self_attention.proj", LINEAR),
    *_norm(_DEC + r"\.norm2", _dec + ".norm2"),
    *_norm(_DEC + r"\.norm_y", _dec + ".norm_y"),
    *_layer(_DEC + r"\.cross_attn\.projq", _dec + ".cross_attention.query", LINEAR),
    *_layer(_DEC + r"\.cross_attn\.projk", _dec + ".cross_attention.key", LINEAR),
    *_layer(_DEC + r"\.cross_attn\.projv", _dec + ".cross_attention.value", LINEAR),
    *_layer(_DEC + r"\.cross_attn\.proj", _dec + ".cross_attention.proj", LINEAR),
    *_norm(_DEC + r"\.norm3", _dec + ".norm3"),
    *_layer(_DEC + r"\.mlp\.fc1", _dec + ".mlp.fc1", LINEAR),
    *_layer(_DEC + r"\.mlp\.fc2", _dec + ".mlp.fc2", LINEAR),
    *_norm(r"dec_norm", "decoder.norm"),
    *_layer(_DPT + r"\.act_postprocess\.(?P<k>[0-3])\.0", _dpt + ".project.{level}", POINTWISE),
    *_layer(_DPT + r"\.act_postprocess\.(?P<k>[01])\.1", _dpt + ".unfold.{level}", TRANSPOSED),
    *_layer(_DPT + r"\.act_postprocess\.3\.1", _dpt + ".shrink", CONV),
    *_layer(_DPT + r"\.scratch\.layer_rn\.(?P<k>[0-3])", _dpt + ".level.{level}", CONV),
    *_layer(_REFINE + r"\.resConfUnit1\.conv1", _fusion + ".merge.conv1", CONV),
    *_layer(_REFINE + r"\.resConfUnit1\.conv2", _fusion + ".merge.conv2", CONV),
    *_layer(_REFINE + r"\.resConfUnit2\.conv1", _fusion + ".refine.conv1", CONV),
    *_layer(_REFINE + r"\.resConfUnit2\.conv2", _fusion + ".refine.conv2", CONV),
    *_layer(_REFINE + r"\.out_conv", _fusion + ".project", POINTWISE),
    *_layer(_DPT + r"\.head\.0", _dpt + ".conv1", CONV),
    *_layer(_DPT + r"\.head\.2", _dpt + ".conv2", CONV),
    *_layer(_DPT + r"\.head\.4", _dpt + ".last", POINTWISE),
    *_layer(_HEAD + r"\.head_local_features\.fc1", _head + ".local_features.fc1", LINEAR),
    *_layer(_HEAD + r"\.head_local_features\.fc2", _head + ".local_features.fc2", LINEAR),
)
"""Published name -> parameter. A name that matches nothing here and in ``IGNORED`` is an error."""

IGNORED: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"mask_token"), "only the pre-training task masks patches"),
    (
        re.compile(_DPT + r"\.scratch\.refinenet4\.resConfUnit1\..*"),
        "the coarsest fusion stage has nothing to merge; the published network never uses it",
    ),
)
"""Published tensors that are left behind, with the reason."""


def canonical(name: str) -> str:
    """One name for a tensor that the published state dict stores under two.

    ``dpt.scratch.layer{k}_rn`` and ``dpt.scratch.layer_rn.{k-1}`` are the same weights; files that
    store shared tensors once keep either name.
    """
    found = re.fullmatch(r"(.*\.dpt\.scratch\.)layer([1-4])_rn(\..*)", name)
    return name if found is None else f"{found[1]}layer_rn.{int(found[2]) - 1}{found[3]}"
