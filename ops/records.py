"""Frozen pytree records: the one way structured values travel through this project.

A record is a frozen dataclass registered as a pytree. It differs from ``flax.struct.dataclass`` in
one point: rebuilding a record from its leaves does not run ``__init__``. So the jaxtyping
annotations of its fields are checked whenever somebody constructs or ``.replace``s a record, but
JAX stays free to rebuild it with batched arrays, tracers or placeholders. It also keeps ``ops``
free of any neural-network library.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")
R = TypeVar("R", bound="Record")


def static_field(**kwargs: Any) -> Any:
    """A record field that is part of the tree's structure: hashable, never traced."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


class Record:
    """Base of every record; supplies ``replace``."""

    def replace(self: R, **changes: Any) -> R:
        """A copy of this record with the given fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static_field))
def record(cls: type[T]) -> type[T]:
    """Class decorator: make ``cls`` (a subclass of ``Record``) a frozen dataclass and a pytree."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    data = tuple(f.name for f in fields if not f.metadata.get("static", False))
    static = tuple(f.name for f in fields if f.metadata.get("static", False))

    def flatten_with_keys(value: T) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in data]
        return children, tuple(getattr(value, name) for name in static)

    def flatten(value: T) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, n) for n in data], tuple(getattr(value, n) for n in static)

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> T:
        value = object.__new__(cls)
        for name, child in zip(data, children, strict=True):
            object.__setattr__(value, name, child)
        for name, item in zip(static, aux, strict=True):
            object.__setattr__(value, name, item)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
