"""The tasks of `lacuna evaluate RUN... task=TASK [KEY=VALUE]...`: words to options, one function each."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from server.evaluation.ways import Asked
from shared.base.display import terminal
from shared.base.errors import ConfigError
from shared.base.options import build
from shared.diffusion.samplers import Sampler
from shared.plan.settings import load_sampler


def parse(words: Sequence[str]) -> tuple[str | None, tuple[str, ...], dict[str, Any]]:
    """Task, names of runs, and the keys; a value is read as JSON where it is some, else as a word."""
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
    task = keys.pop("task", None)
    if task not in TASKS and (task is not None or keys.keys() - {"strangers"} or len(names) > 1):
        raise ConfigError(f"task={task}: must be one of {', '.join(TASKS)}; without a task name one run and no key")
    return task, names, keys


def carry_out(words: Sequence[str], samplers: Sequence[str], every: int, *, runs: Path, seed: int, device: str) -> None:
    """The task that is named; of one run, the usual evaluation where none is."""
    task, names, keys = parse(words)
    strangers = keys.pop("strangers", False)
    if not isinstance(strangers, bool):
        raise ConfigError(f"strangers={strangers}: must be true or false")
    asked = Asked(names=names, runs=runs, seed=seed, device=device, out=_folder(keys, "out"), strangers=strangers)
    if task is None:
        _usual(asked, samplers, every)
        return
    if len(samplers) > 1:
        raise ConfigError(f"--sampler {samplers[1]}: task={task} takes one sampler")
    TASKS[task](asked, load_sampler(samplers[0]) if samplers else None, keys)


def _usual(asked: Asked, samplers: Sequence[str], every: int) -> None:
    from server.evaluation.compare import compare
    from shared.model.scorecard import FIGURES, printable, printable_samples

    with terminal.bar("scoring") as advance:
        lines, sampled = compare(replace(asked, progress=advance), samplers=samplers, every=every)
    terminal.table(FIGURES, *printable(lines))
    title = "one modality hidden; texture; how many truths lie in intervals for 90 %, in all tasks"
    terminal.table(title, *printable_samples(sampled))


def _diagnosis(asked: Asked, sampler: Sampler | None, keys: Mapping[str, Any]) -> None:
    from server.evaluation.diagnosis_runs import diagnose
    from server.evaluation.diagnosis_tables import notes, printable
    from shared.model.diagnosis import DiagnosisOptions

    rest = dict(keys)
    study = _folder(rest, "study")
    options = build(DiagnosisOptions, rest, "diagnosis")
    with terminal.bar("completing and training") as advance:
        findings, lines = diagnose(replace(asked, progress=advance), options, study=study, sampler=sampler)
    title = f"{options.ill} against {options.well}: means over generations with 95 % intervals"
    terminal.table(title, *printable(lines))
    for note in notes(findings):
        typer.echo(f"- {note}")


def _images(asked: Asked, sampler: Sampler | None, keys: Mapping[str, Any]) -> None:
    from server.evaluation.directions import compare_images, printable

    rest = dict(keys)
    subjects = rest.pop("subjects", None)
    if rest:
        raise ConfigError(f"{next(iter(rest))}=: unknown key; task=images takes out, strangers, subjects")
    if subjects is not None and not (isinstance(subjects, int) and subjects >= 1):
        raise ConfigError(f"subjects={subjects}: must be 1 or more")
    with terminal.bar("scoring") as advance:
        lines = compare_images(replace(asked, progress=advance), sampler=sampler, subjects=subjects)
    terminal.table("means over subjects, in the brain; leads in dB with 95 % intervals", *printable(lines))


def _folder(keys: dict[str, Any], name: str) -> Path | None:
    value = keys.pop(name, None)
    return None if value is None else Path(str(value))


TASKS: Mapping[str, Callable[[Asked, Sampler | None, Mapping[str, Any]], None]] = {
    "diagnosis": _diagnosis,
    "images": _images,
}
