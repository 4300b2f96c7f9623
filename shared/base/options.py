"""Plain mappings (JSON, YAML) to frozen option dataclasses and back: a bad value fails before any data is read."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from shared.base.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of `cls` from plain values; unknown keys, missing keys and wrong types are named as `where.key`."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}.{key}={values[key]!r}: unknown key; {where} takes {', '.join(sorted(fields))}")
    arguments = {key: _fit(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    missing = [
        name
        for name, f in fields.items()
        if name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}.{missing[0]}: missing, and it has no default")
    try:
        return cls(**arguments)
    except ConfigError as error:  # raised in __post_init__, which knows the key but not where it was written
        raise ConfigError(f"{where}.{error}") from None


def plain(options: Any) -> Any:
    """The reverse of `build`: dataclasses to dicts and tuples to lists, ready for JSON."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {f.name: plain(getattr(options, f.name)) for f in dataclasses.fields(options) if f.init}
    if isinstance(options, Mapping):
        return {str(key): plain(value) for key, value in options.items()}
    if isinstance(options, list | tuple):
        return [plain(value) for value in options]
    if isinstance(options, Path):
        return str(options)
    return options


def require(rule: bool, key: str, value: Any, says: str) -> None:
    """For __post_init__: `require(0 < self.lr, "lr", self.lr, "above 0")`."""
    if not rule:
        raise ConfigError(f"{key}={value!r}: must be {says}")


def _fit(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for option in args:
            if option is type(None):
                continue
            try:
                return _fit(option, value, where)
            except ConfigError as error:
                errors.append(str(error))
        raise ConfigError(errors[0])
    if dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r}: must be a group of keys")
        return build(typing.cast(type[Any], hint), value, where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}={value!r}: must be one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{where}={value!r}: must be a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise ConfigError(f"{where}={value!r}: must have {len(inner)} entries")
        return tuple(_fit(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True)))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}={value!r}: must be a group of keys")
        return {str(key): _fit(args[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is Any:
        return value
    if not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool)):
        raise ConfigError(f"{where}={value!r}: must be {getattr(hint, '__name__', hint)}")
    return value
