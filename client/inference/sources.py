"""A subject's files as `synthesize` and `reconstruct` take them: found, and read without leaving any aside."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shared.base.errors import DataError
from shared.base.vocabulary import Modality
from shared.data.bids import Sources, find_files
from shared.data.modalities import entity, in_order, modality_of, parse
from shared.data.preparation import Loaded, load
from shared.model.bundle import Bundle

Subject = Path | Mapping[Modality, Path]  # a BIDS subject folder, a folder of files with usual names, or each file


def find(subject: Subject) -> Sources:
    if not isinstance(subject, Path):
        files = {parse(name): path for name, path in subject.items()}
        return _sources({m: files[m] for m in in_order(files)}, "unnamed")
    if not subject.is_dir():
        raise DataError(f"subject {subject}: no such folder")
    flat = sorted(subject.glob("*.nii*"))
    if not flat:
        found = find_files(subject.parent, subject)
        excluded = [remark.why for remark in found.remarks if remark.done == "excluded"]
        if excluded:
            raise DataError(f"subject {subject}: {excluded[0]}")
        return found
    held: dict[Modality, Path] = {}
    for path in flat:
        modality = modality_of(path)
        if modality in held:
            raise DataError(f"subject {subject}: {held[modality].name} and {path.name} are both {modality}; name one")
        if modality is not None:
            held[modality] = path
    return _sources({m: held[m] for m in in_order(held)}, subject.name)


def check_targets(bundle: Bundle, asked: Sequence[Modality]) -> tuple[Modality, ...]:
    """Those that were asked for, in the bundle's order."""
    known = bundle.model.method.targets
    wanted = {parse(name) for name in asked}
    for modality in in_order(wanted):
        if modality not in known:
            raise DataError(f"target {modality}: the bundle makes {', '.join(known)}")
    return tuple(m for m in known if m in wanted)


def check_out(subject: Subject, out: Path) -> None:
    if isinstance(subject, Path) and out.resolve().is_relative_to(subject.resolve()):
        raise DataError(f"out={out}: lies in the subject's own folder; keep synthetic volumes away from measured ones")


def check_there(paths: Iterable[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file")


def load_all(sources: Sources, bundle: Bundle, *, own_slices: bool = False) -> Loaded:
    """Stricter than a cohort: an input that can't be used is not left out behind the reader's back.

    `own_slices`: the subject's slices stay as they are, whatever their distance.
    """

    def refuse(path: Path, why: str) -> None:
        raise DataError(f"{path.name}: {why}; mend it or leave it out")

    grid = replace(bundle.model.grid, slice_mm=None) if own_slices else bundle.model.grid
    return load(sources, grid, refuse, grow=bundle.model.method.slab > 1)  # windows reach everywhere


def _sources(files: Mapping[Modality, Path], otherwise: str) -> Sources:
    """The subject's name is the one that the files bear."""
    named = {entity(path, "sub") for path in files.values()} - {""}
    name = named.pop() if len(named) == 1 else "".join(c for c in otherwise if c.isalnum() and c.isascii()) or "unnamed"
    return Sources(subject=f"sub-{name}", files=files, lesion=None, remarks=())
