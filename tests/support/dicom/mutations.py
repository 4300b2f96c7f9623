"""DICOM folders spoiled at random: bytes flipped, cut and repeated, tags set to nonsense, files mixed up; and the law
that an ingest keeps on all of them: every file is accounted for, nothing is half written, and nothing but our own
errors comes out.
"""

import random
import shutil
import struct
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path

from hypothesis import strategies
from support.dicom.dicoms import volume, write_series

from client.ingest.arrive.collect import collect
from client.ingest.arrive.records import Aside
from client.ingest.cohort.take import Found, take
from client.ingest.recognise import listing
from client.ingest.recognise.series import group

KINDS = ("flip", "cut", "drop", "repeat", "swap", "tag", "length", "empty", "pad", "copy", "insert")
NONSENSE = (b"", b"NaN", b"-1", b"1e999", b"0\\0\\0", b"\xff\xfe\x00", b"' OR 1=1", b"../../etc", b"9" * 300, b"\\\\\\")
Mutation = tuple[str, int, int, int]  # what, which file, where, with what

mutations = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(KINDS),
        strategies.integers(0, 31),
        strategies.integers(0, 2**31),
        strategies.integers(0, 2**31),
    ),
    min_size=1,
    max_size=12,
)


@cache
def _originals() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        for number, modality in enumerate(("T1", "CT", "FDG"), start=1):
            data = volume(modality, (9, 34, 33))
            write_series(Path(folder), modality, number=number, data=data, name=f"{modality}{{:02d}}")
        return tuple(path.read_bytes() for path in sorted(Path(folder).iterdir()))


def spoil(raw: bytes, kind: str, where: int, value: int, other: bytes) -> bytes:
    rng = random.Random(value)
    at = where % max(len(raw), 1)
    head = at % 2500  # among the tags, where it hurts
    if kind == "flip":
        return raw[:head] + bytes([rng.randrange(256)]) + raw[head + 1 :]
    if kind == "cut":
        return raw[:at]
    if kind == "drop":
        return raw[:head] + raw[head + rng.randrange(1, 60) :]
    if kind == "repeat":
        return raw[:head] + raw[head : head + rng.randrange(1, 300)] * rng.randrange(1, 4) + raw[head:]
    if kind == "swap":
        return raw[:head] + other[head:]
    if kind == "tag":  # a text element's value becomes nonsense of its length
        spots = [
            i for i in range(132, min(len(raw), 3000) - 8) if raw[i + 4 : i + 6] in (b"DS", b"IS", b"UI", b"CS", b"DA")
        ]
        if spots:
            spot = rng.choice(spots)
            (length,) = struct.unpack("<H", raw[spot + 6 : spot + 8])
            nonsense = rng.choice(NONSENSE).ljust(length)[:length]
            return raw[: spot + 8] + nonsense + raw[spot + 8 + length :]
    if kind == "length":
        return raw[: head + 6] + struct.pack("<I", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1))) + raw[head + 10 :]
    if kind == "empty":
        return b""
    if kind == "pad":
        return raw + rng.randbytes(rng.randrange(1, 5000))
    if kind == "insert":
        return raw[:head] + rng.randbytes(rng.randrange(1, 40)) + raw[head:]
    return raw


def check(changes: list[Mutation]) -> None:
    """Ingest the spoiled folder up to the conversion; an AssertionError, or any other error, is a find."""
    root = Path(tempfile.mkdtemp(prefix="lacuna-fuzz-"))
    try:
        originals = list(_originals())
        files = list(originals)
        for kind, which, where, value in changes:
            number = which % len(files)
            files[number] = spoil(files[number], kind, where, value, originals[value % len(originals)])
            if kind == "copy":
                files.append(originals[value % len(originals)])
        source = root / "source"
        source.mkdir()
        for number, raw in enumerate(files):
            (source / f"{number:03d}").write_bytes(raw)
        _check(source, root / "ingest", len(files))
    finally:
        shutil.rmtree(root)


def _check(source: Path, folder: Path, count: int) -> None:
    headers, asides = collect(source)
    assert len(headers) + len(asides) == count
    series, others = group(headers)
    listed = listing.decide(series, folder)
    listing.write(listed, folder)
    assert listing.decide(series, folder) == listed  # what was written is not taken for a person's word
    found = Found(files=count, listed=tuple(listed), ready=(), asides=())
    record, left = take(found, None, folder, days=0, workers=1, bar=lambda title: nullcontext(lambda *_: None))
    used = {path for one in record.taken for path in one.acquired.source}
    named = {aside.where for aside in (*asides, *others, *left)} | {
        one.series.key for one in listed if not one.modality
    }
    for one in listed:
        assert one.series.key in named or set(one.series.paths) <= used
    in_series = {str(path) for one in listed for path in one.series.paths}
    by_series = {aside.series for aside in others if aside.what == "series"}
    for header in headers:
        here = str(header.path)
        assert here in in_series or here in named or header.text("SeriesInstanceUID") in by_series, here
    assert all(_is_a_line(aside) for aside in (*asides, *others, *left))
    assert not list(folder.rglob("*.partial"))


def _is_a_line(aside: Aside) -> bool:
    return bool(aside.why) and "\n" not in aside.why and len(aside.why) < 250
