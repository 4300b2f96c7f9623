"""Whatever ends a write, and wherever: the reader finds the old whole, or the new; and what was reported is there."""

import errno
import fcntl
import os
import random
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.disk.disks import Choose, Killed, failing

from shared.base import checkpoint, files
from shared.base.chain import Chain
from shared.base.disk import locks, system
from shared.base.files import Change, locked

OLD, NEW = "old " * 3000, "the new one " * 2000  # over the buffer's size: more than one call writes it


def _text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _tree(folder: Path) -> dict[str, str] | None:
    """What a reader sees: nothing with a hidden name."""
    if not folder.is_dir():
        return None
    seen = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path): (folder / path).read_text() for path in seen if not str(path).startswith(".")}


@dataclass(frozen=True)
class Write:
    """A folder as it was, what is done in it, and what a reader finds there."""

    before: Callable[[Path], Any]
    act: Callable[[Path], Any]
    read: Callable[[Path], Any]
    swaps: bool = True  # can the disk?


def _fill(folder: Path, text: str) -> None:
    with files.new_folder(folder) as made:
        for name in ("a", "b", "in/c"):
            files.write_text(made / name, f"{name} {text}", durable=False)
            text += "."


def _change(folder: Path) -> None:
    with locked(folder):
        change = Change(folder)
        change.write("a", NEW.encode())
        change.write("kits/b", NEW.encode())
        change.remove("c")
        change.commit()


def _settled(folder: Path) -> Any:
    with locked(folder):
        return _tree(folder)


def _save(folder: Path, value: float) -> None:
    checkpoint.save(folder / "c", {"w": torch.full((5000,), value)}, {"round": value})


def _checkpoint(folder: Path) -> float | None:
    return float(checkpoint.load(folder / "c")[1]["round"]) if (folder / "c").exists() else None


def _add(folder: Path) -> None:
    Chain(folder / "in" / "chain").append(lambda before, last: {"text": NEW})


def _nothing(folder: Path) -> None:
    pass


def _streamed(folder: Path) -> None:
    with files.writing(folder / "f") as file:
        for start in range(0, len(NEW), 1000):
            file.write(NEW[start : start + 1000].encode())


def _moved(folder: Path) -> None:
    (folder / "g").write_text(NEW)
    files.move(folder / "g", folder / "f")


WRITES = {
    "a new file": Write(_nothing, lambda f: files.write_text(f / "f", NEW), lambda f: _text(f / "f")),
    "a file": Write(
        lambda f: (f / "f").write_text(OLD), lambda f: files.write_text(f / "f", NEW), lambda f: _text(f / "f")
    ),
    "a stream": Write(lambda f: (f / "f").write_text(OLD), _streamed, lambda f: _text(f / "f")),
    "a file in new folders": Write(
        _nothing, lambda f: files.write_json(f / "x" / "y" / "f", NEW), lambda f: _text(f / "x" / "y" / "f")
    ),
    "a file that is written once": Write(
        _nothing, lambda f: files.write_once(f / "in" / "key", NEW.encode()), lambda f: _text(f / "in" / "key")
    ),
    "a finished file": Write(lambda f: (f / "f").write_text(OLD), _moved, lambda f: _text(f / "f")),
    "a new folder": Write(_nothing, lambda f: _fill(f / "d", NEW), lambda f: _tree(f / "d")),
    "a folder": Write(lambda f: _fill(f / "d", OLD), lambda f: _fill(f / "d", NEW), lambda f: _tree(f / "d")),
    "a folder where names don't swap": Write(
        lambda f: _fill(f / "d", OLD),
        lambda f: _fill(f / "d", NEW),
        lambda f: (files.sweep(f), _tree(f / "d"))[1],
        swaps=False,
    ),
    "a checkpoint": Write(lambda f: _save(f, 1), lambda f: _save(f, 2), _checkpoint),
    "a change": Write(
        lambda f: [(f / name).write_text(OLD) for name in ("a", "c")],
        _change,
        _settled,
    ),
    "a chain's first entry": Write(_nothing, _add, lambda f: len(list(Chain(f / "in" / "chain").entries()))),
    "a chain's entry": Write(_add, _add, lambda f: len(list(Chain(f / "in" / "chain").entries()))),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the disk's own time adds nothing to what is shown here


@pytest.fixture(params=list(WRITES))
def write(request: pytest.FixtureRequest) -> Iterator[Write]:
    found = WRITES[request.param]
    with mock.patch.object(system, "swap", system.swap if found.swaps else lambda one, other: False):
        yield found


def _start(write: Write, folder: Path) -> tuple[Any, Any]:
    """What is read before, and after a write that nothing disturbs."""
    for name in ("old", "new"):
        (folder / name).mkdir()
        write.before(folder / name)
    write.act(folder / "new")
    return write.read(folder / "old"), write.read(folder / "new")


def _each_call(write: Write, folder: Path, how: str) -> Iterator[tuple[Path, Any]]:
    """The same write again and again, in folders of its own, failing one call later each time, till none is left."""
    for at in count():
        place = folder / f"at{at}"
        place.mkdir()
        write.before(place)
        with failing(place, at, how, cuts=True) as faults, suppress(Killed, OSError):
            write.act(place)
        yield place, faults
        faults.power.close()
        if len(faults.calls) <= at:
            assert at >= 3
            return


@pytest.mark.parametrize("how", ["killed", "full", "broken"])
def test_a_failure_at_any_call_leaves_the_old_or_the_new_whole(write: Write, tmp_path: Path, how: str) -> None:
    old, new = _start(write, tmp_path)
    assert old != new
    found = []
    for place, _ in _each_call(write, tmp_path, how):
        found.append(write.read(place))
        assert found[-1] in (old, new)
    assert found[0] == old
    assert found[-1] == new


def test_the_next_write_is_not_in_the_way_of_what_a_kill_left(write: Write, tmp_path: Path) -> None:
    _, new = _start(write, tmp_path)
    for place, _ in _each_call(write, tmp_path, "killed"):
        left = [path for path in place.rglob("*") if path.name.endswith((".partial", ".old"))]
        if write.read(place) != new:
            write.act(place)
        assert write.read(place) == new
        for folder in {path.parent for path in left if path.parent.exists()}:
            files.sweep(folder)
        assert not [path for path in place.rglob("*") if path.name.endswith((".partial", ".old"))]


def _outcomes() -> Iterator[Choose]:
    """The extremes (nothing more than what was synced; all names and no bytes, and so on), and many between."""
    for name in (0, -1):
        for content in (0, 1, -1):
            yield lambda states, n=name, c=content: states[
                min(c, len(states) - 1) if isinstance(states[0], bytes) else n
            ]
    for seed in range(6):
        yield random.Random(seed).choice


def test_a_power_cut_at_any_call_leaves_the_old_or_the_new_whole(write: Write, tmp_path: Path) -> None:
    old, new = _start(write, tmp_path)
    for _, faults in _each_call(write, tmp_path, "killed"):
        for choose in _outcomes():
            after = tmp_path / "after"
            faults.power.cut(after, choose)
            assert write.read(after) in ((old, new) if faults.dead else (new,)), faults.calls
            shutil.rmtree(after)


def test_the_model_of_a_power_cut_loses_what_is_not_synced(tmp_path: Path) -> None:
    """That is: without each of the two syncs of a file the test above would have failed."""
    synced = system.sync
    for left_out in ("file", "folder"):
        place = tmp_path / left_out
        place.mkdir()
        (place / "f").write_text(OLD)

        def sync(path: Path, left_out: str = left_out) -> None:
            if path.is_dir() != (left_out == "folder"):
                synced(path)

        with failing(place, cuts=True) as faults, mock.patch.object(system, "sync", sync):
            files.write_text(place / "f", NEW)
        found = set()
        for choose in _outcomes():
            faults.power.cut(tmp_path / "after", choose)
            found.add(_text(tmp_path / "after" / "f"))
            shutil.rmtree(tmp_path / "after")
        faults.power.close()
        assert ("" in found) if left_out == "file" else (OLD in found)


def test_what_need_not_be_durable_is_whole_after_a_kill_and_never_waits_for_the_disk(tmp_path: Path) -> None:
    write = Write(
        lambda f: (f / "f").write_text(OLD),
        lambda f: files.write_text(f / "f", NEW, durable=False),
        lambda f: _text(f / "f"),
    )
    for place, faults in _each_call(write, tmp_path, "killed"):
        assert write.read(place) in (OLD, NEW)
        assert "sync" not in faults.calls


# --- what is half made


def test_two_that_write_the_same_at_once_are_not_in_each_other_s_way(tmp_path: Path) -> None:
    with files.writing(tmp_path / "f") as one:
        one.write(b"one")
        with files.writing(tmp_path / "f") as two:
            two.write(b"two")
        files.sweep(tmp_path)  # takes nothing that is being made
        assert sorted(path.name for path in tmp_path.iterdir()) == [".f.partial", "f"]
        assert (tmp_path / "f").read_bytes() == b"two"
    assert (tmp_path / "f").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_write_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    def give_up(making: Any) -> None:
        with pytest.raises(ValueError, match="up"), making:
            raise ValueError("given up")

    give_up(files.writing(tmp_path / "f"))
    give_up(files.writing_at(tmp_path / "f"))
    give_up(files.new_folder(tmp_path / "d"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("left", [".f.partial", ".f.4711.partial", ".f.2.partial"])
def test_what_an_older_version_left_is_swept_too(tmp_path: Path, left: str) -> None:
    (tmp_path / left).mkdir()
    (tmp_path / left / "half").write_text("half")
    (tmp_path / "f").write_text(OLD)
    files.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_left_over_link_never_leads_a_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text(OLD)
    for make in (os.symlink, os.link):
        make(tmp_path / "precious", tmp_path / ".f.partial")
        files.write_text(tmp_path / "f", NEW)
        assert _text(tmp_path / "precious") == OLD
        assert _text(tmp_path / "f") == NEW


# --- modes, copies, what is written once


def test_a_secret_is_its_owner_s_alone_from_its_first_byte(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with files.writing(tmp_path / "key", mode=0o600):
            assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]
        with files.new_folder(tmp_path / "d", mode=0o700) as made:
            assert made.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_what_is_written_once_is_never_overwritten(tmp_path: Path) -> None:
    files.write_once(tmp_path / "in" / "key", b"one")
    with pytest.raises(FileExistsError):
        files.write_once(tmp_path / "in" / "key", b"two")
    assert (tmp_path / "in" / "key").read_bytes() == b"one"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["key"]


@pytest.mark.parametrize("linked", [True, False])
def test_a_copy_has_the_bytes_and_a_link_shares_them(tmp_path: Path, linked: bool) -> None:
    (tmp_path / "f").write_text(NEW)
    files.copy(tmp_path / "f", tmp_path / "in" / "g", linked=linked)
    assert _text(tmp_path / "in" / "g") == NEW
    assert os.path.samefile(tmp_path / "f", tmp_path / "in" / "g") == linked


# --- disks that can't do all of this


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_a_disk_without_links_locks_and_syncs_of_folders_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def cannot(*arguments: object, **named: object) -> None:
        raise OSError(code, os.strerror(code))

    def sync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            cannot()

    (tmp_path / "f").write_text(OLD)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "link", cannot)
    monkeypatch.setattr(fcntl, "flock", cannot)
    monkeypatch.setattr(system, "swap", lambda one, other: False)
    files.copy(tmp_path / "f", tmp_path / "g", linked=True)
    files.write_text(tmp_path / "f", NEW)
    files.write_once(tmp_path / "key", b"one")
    with pytest.raises(FileExistsError):
        files.write_once(tmp_path / "key", b"two")
    _fill(tmp_path / "d", OLD)
    _fill(tmp_path / "d", NEW)
    assert (_text(tmp_path / "f"), _text(tmp_path / "g"), _text(tmp_path / "key")) == (NEW, OLD, "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f", "g", "key"]
    with pytest.raises(OSError, match=re.escape(os.strerror(code))):  # a lock that excludes nobody is none
        locks.take(tmp_path / "lock")


def test_a_lock_is_one_process_s_and_freed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    with locks.held(path):
        assert locks.is_held(path)
        assert locks.take(path, wait=0.05) is None
        with pytest.raises(ValueError, match="busy"), locks.held(path, busy=ValueError("busy")):
            pass
    assert not locks.is_held(path)
    handle = locks.take(path)
    assert handle is not None
    path.unlink()
    with locks.held(path):  # whoever held the one that was removed has nothing
        os.close(handle)
        assert locks.is_held(path)
