"""A folder to headers: any nesting, any names, and whatever else lies in it. Every file ends in one of two lists.

Nothing is unpacked. A folder is entered once, however many links lead to it; a link out of the source is not followed.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from client.ingest.arrive.headers import Header, read
from client.ingest.arrive.records import Aside
from shared.base.display.progress import Progress, unwatched
from shared.base.errors import DataError

MAX_DEPTH = 64


def collect(source: Path, *, progress: Progress = unwatched) -> tuple[list[Header], list[Aside]]:
    """The header of every DICOM file below `source`, and why each of the other files is none."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder")
    paths, asides = find_files(source)
    headers = []
    for done, path in enumerate(paths, start=1):
        try:
            headers.append(read(path))
        except DataError as error:
            asides.append(Aside(what="file", where=str(path), why=str(error)))
        if done % 16 == 0 or done == len(paths):
            progress(done, len(paths))
    return headers, asides


def find_files(source: Path) -> tuple[list[Path], list[Aside]]:
    """Regular files in the order of their names, each once; what is no such file is left aside."""
    asides: list[Aside] = []
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []

    def leave(path: Path, why: str) -> None:
        asides.append(Aside(what="file", where=str(path), why=why))

    def is_new(status: os.stat_result) -> bool:
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        return not known

    root = source.resolve()
    is_new(root.stat())
    stack = [(source, 0)]
    while stack:
        folder, depth = stack.pop()
        try:
            entries = sorted(_entries(folder), key=lambda entry: entry.is_symlink())  # what links lead to comes first
        except OSError as error:
            leave(folder, f"a folder that can't be read: {error.strerror}")
            continue
        for entry in entries:
            path = Path(entry.path)
            try:
                status = entry.stat()
            except OSError as error:
                leave(path, "a link to nothing, or in a circle" if entry.is_symlink() else f"{error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                if entry.is_symlink() and not path.resolve().is_relative_to(root):
                    leave(path, "a link to a folder outside: not followed")
                elif depth >= MAX_DEPTH:
                    leave(path, f"more than {MAX_DEPTH} folders deep")
                elif is_new(status):
                    stack.append((path, depth + 1))
                elif entry.is_symlink():
                    leave(path, "a link to a folder that was read already")
            elif not stat.S_ISREG(status.st_mode):
                leave(path, "not a file (a socket, pipe or device)")
            elif is_new(status):
                found.append(path)
            else:
                leave(path, "the same file under another name (a link)")
    return sorted(found), asides


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from sorted(entries, key=lambda entry: entry.name)


def is_bids(source: Path) -> bool:
    """Does the folder hold sub-*/[ses-*/]anat|ct|pet/*.nii.gz, so that there is nothing to convert?"""
    patterns = ("sub-*/*/*.nii", "sub-*/*/*.nii.gz", "sub-*/ses-*/*/*.nii", "sub-*/ses-*/*/*.nii.gz")
    return any(next(source.glob(pattern), None) is not None for pattern in patterns)
