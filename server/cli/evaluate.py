"""The tasks of `lacuna evaluate RUN... task=TASK [KEY=VALUE]...`: words to options, one function each."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from shared.base.display import terminal
from shared.base.errors import ConfigError
from shared.base.options import build
from shared.diffusion.samplers import Sampler
from shared.plan.config import load_sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What all tasks are given."""

    names: tuple[str, ...]
    runs: Path
    sampler: Sampler | None
    seed: int
    device: str


def split(words: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of runs, and the keys; a value is read as JSON where it is some, else as a word."""
    names = tuple(word for word in words if "=" not in word)
    keys: dict[str, Any] = {}
    for word in words:
        key, given, value = word.partition("=")
        if given:
            if key in keys:
                raise ConfigError(f"{word}: {key} was given already")
            try:
                keys[key] = json.loads(value)
            except ValueError:
                keys[key] = value
    if not names:
        raise ConfigError("evaluate: name a run")
    return names, keys


def carry_out(words: Sequence[str], *, runs: Path, sampler: str | None, seed: int, device: str) -> bool:
    """False where no task is named, and one run: then it is the usual evaluation."""
    names, keys = split(words)
    task = keys.pop("task", None)
    if task is None and not keys and len(names) == 1:
        return False
    if task not in TASKS:
        raise ConfigError(f"task={task}: must be one of {', '.join(TASKS)}; without a task name one run and no key")
    chosen = load_sampler(sampler) if sampler is not None else None
    TASKS[task](Asked(names=names, runs=runs, sampler=chosen, seed=seed, device=device), keys)
    return True


def _diagnosis(asked: Asked, keys: Mapping[str, Any]) -> None:
    from server.evaluation.diagnosis_runs import diagnose
    from server.evaluation.diagnosis_tables import notes, printable
    from shared.model.diagnosis import DiagnosisOptions

    rest = dict(keys)
    study, out = _folder(rest, "study"), _folder(rest, "out")
    strangers = rest.pop("strangers", False)
    if not isinstance(strangers, bool):
        raise ConfigError(f"strangers={strangers}: must be true or false")
    options = build(DiagnosisOptions, rest, "diagnosis")
    with terminal.bar("completing and training") as advance:
        findings, lines = diagnose(
            asked.names,
            asked.runs,
            options,
            study=study,
            strangers=strangers,
            sampler=asked.sampler,
            seed=asked.seed,
            device=asked.device,
            out=out,
            progress=advance,
        )
    title = f"{options.ill} against {options.well}: means over generations with 95 % intervals"
    terminal.table(title, *printable(lines))
    for note in notes(findings):
        typer.echo(f"- {note}")


def _images(asked: Asked, keys: Mapping[str, Any]) -> None:
    from server.evaluation.chart_tables import compare_images, printable

    rest = dict(keys)
    out, subjects = _folder(rest, "out"), rest.pop("subjects", None)
    if rest:
        raise ConfigError(f"{next(iter(rest))}=: unknown key; task=images takes out, subjects")
    if subjects is not None and not (isinstance(subjects, int) and subjects >= 1):
        raise ConfigError(f"subjects={subjects}: must be 1 or more")
    with terminal.bar("scoring") as advance:
        lines = compare_images(
            asked.names,
            asked.runs,
            sampler=asked.sampler,
            subjects=subjects,
            seed=asked.seed,
            device=asked.device,
            out=out,
            progress=advance,
        )
    terminal.table("means over subjects, in the brain; leads in dB with 95 % intervals", *printable(lines))


def _folder(keys: dict[str, Any], name: str) -> Path | None:
    value = keys.pop(name, None)
    return None if value is None else Path(str(value))


TASKS: Mapping[str, Callable[[Asked, Mapping[str, Any]], None]] = {"diagnosis": _diagnosis, "images": _images}
