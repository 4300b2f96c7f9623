"""A command's options as frozen dataclasses, so that what several verbs take is written once.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Drawing:
        seed: Annotated[int, typer.Option(help="Same seed, same volume.")] = 0
        device: Device = "auto"

    @app.command()
    @flat
    def synthesize(bundle: Bundle, drawing: Drawing) -> None: ...      # --bundle, --seed, --device

An option's place in --help is its field's. A subclass that says a field anew keeps the field's place.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter
from typing import Any


def flat(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each parameter that is a dataclass replaced by that dataclass's fields, as typer reads them."""
    hints = typing.get_type_hints(verb, include_extras=True)
    given = inspect.signature(verb).parameters
    groups = {name: hints[name] for name in given if dataclasses.is_dataclass(hints[name])}
    flattened: list[Parameter] = []
    for name, parameter in given.items():
        own = parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        flattened += _fields(groups[name]) if name in groups else [own]
    names = [parameter.name for parameter in flattened]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, f"{verb.__name__}: {', '.join(twice)}: each option once"

    @functools.wraps(verb)
    def spread(**values: Any) -> None:
        built = {name: _build(group, values) for name, group in groups.items()}
        verb(**built, **{name: values[name] for name in given if name not in groups})

    signature = inspect.Signature(flattened, return_annotation=None)
    spread.__signature__ = signature  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in flattened}
    return spread


def _fields(group: type[Any]) -> Iterator[Parameter]:
    hints = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        made = field.default_factory is not dataclasses.MISSING
        assert not made, f"{group.__name__}.{field.name}: an option's default is a plain value"
        default = Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])


def _build(group: type[Any], values: Mapping[str, Any]) -> Any:
    return group(**{field.name: values[field.name] for field in dataclasses.fields(group)})
