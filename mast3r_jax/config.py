"""Sizes of the network: everything that decides the shapes of its parameters."""

import dataclasses
import json
from typing import Any


class ConfigError(ValueError):
    """A network configuration that cannot be built; the message lists every reason."""


@dataclasses.dataclass(frozen=True)
class MASt3RConfig:
    """Sizes of a MASt3R network (Leroy et al., ECCV 2024); the defaults are the published ones.

    Raises:
        ConfigError: if the sizes do not fit together, with all reasons in one message.
    """

    enc_dim: int = 1024
    """Channels of the encoder's tokens."""
    enc_depth: int = 24
    """Number of encoder blocks."""
    enc_heads: int = 16
    """Attention heads of the encoder; a head's width must be a multiple of 4 (2D rotation)."""
    dec_dim: int = 768
    """Channels of the decoders' tokens."""
    dec_depth: int = 12
    """Number of blocks in each of the twin decoders."""
    dec_heads: int = 12
    """Attention heads of the decoders."""
    mlp_ratio: float = 4.0
    """Hidden over input width of every MLP, the descriptor head's included."""
    patch_size: int = 16
    """Side of an image patch in pixels; the dense head restores exactly a factor of 16."""
    rope_base: float = 100.0
    """Base of the rotary embedding's frequencies."""
    descriptor_dim: int = 24
    """Channels of a pixel's descriptor."""
    dpt_dim: int = 256
    """Channels of the dense head's fusion stages."""
    dpt_last_dim: int = 128
    """Channels of the dense head's last hidden layer."""
    dpt_layer_dims: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of the dense head's four levels, finest first."""

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ConfigError("this network cannot be built: " + "; ".join(problems))

    @classmethod
    def vit_large(cls) -> "MASt3RConfig":
        """The published network: ViT-Large encoder, two Base decoders, 686 million parameters."""
        return cls()

    @classmethod
    def small(cls) -> "MASt3RConfig":
        """The embedded network: 7.7 million parameters, 15.5 MB in half precision.

        More than half of them are the two descriptor heads, whose last layer writes
        ``(descriptor_dim + 1) * 256`` numbers per token: hence 16 channels, and an MLP ratio of 2.
        """
        return cls(
            enc_dim=128,
            enc_depth=8,
            enc_heads=4,
            dec_dim=96,
            dec_depth=6,
            dec_heads=3,
            mlp_ratio=2.0,
            descriptor_dim=16,
            dpt_dim=48,
            dpt_last_dim=32,
            dpt_layer_dims=(32, 48, 64, 96),
        )

    @property
    def hooks(self) -> tuple[int, int, int, int]:
        """Token lists read by the dense head: 0 is the encoder's, ``i`` follows decoder block i."""
        return (0, self.dec_depth * 2 // 4, self.dec_depth * 3 // 4, self.dec_depth)

    def to_json(self) -> str:
        """The configuration as a JSON object, one field per line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "MASt3RConfig":
        """Reads what ``to_json`` wrote; every field must be there.

        Raises:
            ConfigError: if the text is not JSON, a field is missing or unknown, or a size is bad.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"not a JSON object: {error}") from None
        if not isinstance(fields, dict):
            raise ConfigError(f"a JSON object was expected, not {type(fields).__name__}")
        return cls._from_fields(fields)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "MASt3RConfig":
        names = [field.name for field in dataclasses.fields(cls)]
        problems = [f"missing field {name!r}" for name in names if name not in fields]
        problems += [f"unknown field {name!r}" for name in fields if name not in names]
        if problems:
            raise ConfigError("this is no network configuration: " + "; ".join(problems))
        if not isinstance(fields["dpt_layer_dims"], list):
            raise ConfigError("dpt_layer_dims must be a list of four positive integers")
        values: dict[str, Any] = {**fields, "dpt_layer_dims": tuple(fields["dpt_layer_dims"])}
        return cls(**values)

    def _problems(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "dpt_layer_dims":
                if len(value) != 4 or not all(_is_count(v) for v in value):
                    yield f"dpt_layer_dims must be four positive integers, not {value}"
            elif field.name in ("mlp_ratio", "rope_base"):
                if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                    yield f"{field.name} must be a positive number, not {value!r}"
            elif not _is_count(value):
                yield f"{field.name} must be a positive integer, not {value!r}"
        if any(not _is_count(v) for v in (self.enc_dim, self.enc_heads, self.dec_dim)):
            return
        if not _is_count(self.dec_heads) or not _is_count(self.dec_depth):
            return
        for part, dim, heads in (
            ("enc", self.enc_dim, self.enc_heads),
            ("dec", self.dec_dim, self.dec_heads),
        ):
            if dim % heads or dim // heads % 4:
                yield (
                    f"{part}_dim={dim} split over {part}_heads={heads} leaves heads of "
                    f"{dim / heads:g} channels, which must be a multiple of 4"
                )
        if self.dec_depth < 2:
            yield f"dec_depth={self.dec_depth} leaves no middle level for the dense head; use >= 2"
        if self.patch_size != 16:
            yield f"patch_size={self.patch_size}, but the dense head restores a factor of 16"
        if self.dpt_dim < 2:
            yield f"dpt_dim={self.dpt_dim} cannot be halved; use >= 2"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
