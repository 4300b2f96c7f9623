"""HDF5 files that somebody else wrote, opened with care; the only user of h5py. Messages name file and fault."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import h5py

from shared.base.errors import DataError

File: TypeAlias = h5py.File
DEPTHS = (RuntimeError, KeyError, ValueError, TypeError, IndexError, OverflowError)  # from where h5py may raise


def groups(file: File) -> list[str]:
    """Name the groups at its top."""
    return [name for name in file if isinstance(file[name], h5py.Group)]


def dataset(file: File, name: str) -> h5py.Dataset:
    """A dataset that lies in this file itself: no link or storage leads elsewhere."""
    parts: Sequence[str] = name.split("/")
    for n in range(1, len(parts) + 1):
        if not isinstance(file.get("/".join(parts[:n]), getlink=True), h5py.HardLink):
            raise DataError(f"`{name}` is a link to elsewhere")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"`{name}` is no dataset")
    if found.external or found.is_virtual:
        raise DataError(f"`{name}` is kept in other files; copy it into one")
    return found


def content(text: Any) -> bytes:
    """Give what a dataset of one text holds."""
    if not isinstance(text, bytes | str):
        raise DataError("its XML header is no text")
    return text.encode() if isinstance(text, str) else text


@contextlib.contextmanager
def opened(path: Path) -> Iterator[File]:
    """Open for reading; whatever is wrong with it is a DataError of one line."""
    with named(path):
        try:
            with h5py.File(path, "r") as file:
                yield file
        except FileNotFoundError:
            raise DataError("no such file") from None
        except (DataError, MemoryError):
            raise
        except OSError as error:
            text = str(error)
            if "truncated" in text or "read failed" in text:
                raise DataError("truncated: the file ends early") from None
            if "signature not found" in text:
                raise DataError("not an HDF5 file") from None
            raise DataError("damaged: HDF5 can't read it") from None
        except DEPTHS as error:
            raise DataError(f"damaged ({type(error).__name__})") from error


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """The file's name before the fault, once."""
    try:
        yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(f"{path.name}: ") else f"{path.name}: {text}") from None
    except MemoryError:
        raise DataError(f"{path.name}: one slice does not fit into the memory") from None
