"""What leaves a site: every byte of every reply is recorded, and searched for what must never be in it."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from support.cohort.worlds import SITES_MMSE, prepare_here, write_cohort
from support.model.embeddings import EmbeddingsServer
from support.rounds.federation import config, write

from client.site.ledger import Ledger
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from server.runs.serve import serve
from shared.clinical import FIELDS, TextSettings, chart_of, make_encoder
from shared.clinical.prompts import prompt
from shared.data.bids import read_participants
from shared.data.cohort import Cohort, cache_folder
from shared.plan.config import Config
from shared.plan.settings import Choice
from shared.plan.sums import BITS
from shared.plan.training import PhaseTraining
from shared.trust.privacy import Privacy

pytestmark = [pytest.mark.usefixtures("probe"), pytest.mark.slow]
FLOATS = (np.float16, np.float32, np.float64)


class RecordingGrid(LocalGrid):
    """Keeps the wire form of every reply."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.sent: list[tuple[str, bytes]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for reply in super().pull_messages(message_ids):
            wire_form = message_to_proto(reply).SerializeToString()
            self.sent.append((self._names[reply.metadata.src_node_id], wire_form))
            yield reply


def secrets_of(world: Path, wanted: Config) -> Iterator[tuple[str, bytes]]:
    """What no byte string of a site may contain, in every form that it could take on a wire."""
    for bids in sorted((world / "sites").iterdir()):
        for subject in sorted(p.name for p in bids.glob("sub-*")):
            yield f"subject id {subject}", subject.encode()
            yield "subject id, bare", subject.removeprefix("sub-").encode()
        for path in (str(bids), str(world), "participants.tsv", "vol.npy", "derivatives", "nii.gz"):
            yield f"path {path}", path.encode()
        for value in (SITES_MMSE, 61.625, 62.625):
            for kind in FLOATS:
                packed = np.array([value] * 2, dtype=kind).tobytes()
                yield f"clinical {value} as {kind.__name__}, repeated", packed
            yield f"clinical {value} as text", str(value).encode()
        for pattern, n in Cohort.open(cache_folder(bids, wanted.grid)).patterns().items():
            if n < wanted.federation.min_cell:
                yield f"how many have {pattern}", json.dumps([list(pattern), n]).encode()


def pixels_of(world: Path, wanted: Config) -> set[bytes]:
    """16 bytes of each row of each slice of every image, in every form that numbers could take on a wire.

    Also in those of a sum, whole numbers: the sum over one person is that person. Of these four in a row: two are now
    and then the sum of six others.
    """
    found = set()
    for volume in sorted((world / "sites").glob(f"*/derivatives/lacuna/{wanted.grid.name}/*/vol.npy")):
        stack = np.load(volume).astype(np.float64)
        for row in stack.reshape(-1, stack.shape[-1]):
            values = row[(row > 0) & (row < 1)]
            forms = [numbers.astype(kind) for numbers in (values, 2 * values - 1) for kind in FLOATS]
            forms.append(np.round(values * 2**BITS).astype(np.int64))
            for form in forms:
                size = 32 if form.dtype == np.int64 else 16
                few = form[: size // form.itemsize]
                if few.nbytes == size and len(set(few.tolist())) > 1:
                    found.add(few.tobytes())
    return found


def search(sent: list[tuple[str, bytes]], secrets: list[tuple[str, bytes]]) -> list[str]:
    return [f"{site}: {what}" for site, data in sent for what, secret in secrets if secret in data]


@pytest.fixture(scope="module")
def leaky_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No two people of a site are alike: at each, one person is alone in a modality and another in a combination."""
    root = tmp_path_factory.mktemp("leaky")
    whole = ("T1", "T2", "FLAIR")
    for i, (site, usual, other) in enumerate(
        (("north", ("T1", "T2"), ("T1",)), ("east", ("T1", "FLAIR"), ("FLAIR",)), ("south", whole, ("T2", "FLAIR")))
    ):
        patterns = [usual] * 5 + [other, whole]
        prepare_here(write_cohort(root / "sites" / site, site, patterns, seed=i, mmse=SITES_MMSE))
    return root


METHODS = {
    "probe": (Choice(name="probe"), {"fit": PhaseTraining(rounds=2, steps=2, batch=16, lr=0.01)}),
    "amm_diff": (
        Choice(name="amm_diff", options={"modalities": ["T1", "T2", "FLAIR"], "size": "tiny", "anchor": "ridge"}),
        {
            "pretext": PhaseTraining(rounds=1, steps=2, batch=16, lr=0.001),
            "translate": PhaseTraining(rounds=1, steps=2, batch=16, lr=0.001),
        },
    ),
    "mmdm": (
        Choice(
            name="mmdm", options={"modalities": ["T1", "T2", "FLAIR"], "target": "FLAIR", "size": "tiny", "slab": 3}
        ),
        {"bridge": PhaseTraining(rounds=3, steps=2, batch=16, lr=0.001)},
    ),
}

ACA = {
    "modalities": ["T1", "T2", "FLAIR"],
    "size": "tiny",
    "drop_chart": 0.0,
    "drop_field": 0.0,
    **dict.fromkeys(("depth", "height", "width"), 16),
}
ACA_TRAINING = {
    phase: PhaseTraining(rounds=1, steps=2, batch=16, lr=0.001)
    for phase in ("autoencode", "generate_T1", "generate_T2", "generate_FLAIR")
}
METHODS["aca_diff"] = (Choice(name="aca_diff", options=ACA), ACA_TRAINING)


PRIVATE = Privacy(mode="on", noise=2.0, rate=0.3, epsilon=100.0)


@pytest.mark.parametrize(
    ("method", "privacy"),
    [*((method, Privacy()) for method in METHODS), ("probe", PRIVATE), ("amm_diff", PRIVATE)],
    ids=[*METHODS, "probe, private", "amm_diff, private"],
)
def test_no_byte_that_a_site_sends_is_an_id_a_path_an_image_or_a_record(
    method: str, privacy: Privacy, leaky_world: Path, tmp_path: Path
) -> None:
    choice, training = METHODS[method]
    wanted = dataclasses.replace(
        config(leaky_world, min_subjects=5), method=choice, training=training, privacy=privacy
    )  # the people of a sum as at a deployed site
    folder = write(tmp_path / "run", wanted)
    cohorts = simulation.find_cohorts(wanted)
    simulation.prepare_cohorts(wanted, cohorts)
    grid = RecordingGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    serve(grid, folder, quiet=True)
    secrets, pixels = list(secrets_of(leaky_world, wanted)), pixels_of(leaky_world, wanted)
    assert len(grid.sent) >= 3 * 3
    assert len(secrets) > 100
    assert len(pixels) > 10_000
    assert search(grid.sent, secrets) == []
    assert [site for site, data in grid.sent if runs_in(data, pixels)] == []


CHARTS = (
    ("AD", 17.12537, 41.37519, 9.62543),
    ("LMCI", 25.12573, 19.37591, 2.62534),
    ("CN", 29.12535, 6.37515, 0.12531),
)
TEXT_WIDTH = 64


@pytest.fixture(scope="module")
def charted_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("charted")
    for i, site in enumerate(("north", "east", "odd")):
        bids = write_cohort(root / "sites" / site, site, [("T1", "T2", "FLAIR")] * len(CHARTS), seed=i)
        rows = ["participant_id\tdiagnosis\tmmse\tadas13\tcdrsb"]
        rows += [f"sub-{site}secret{k:03d}\t" + "\t".join(map(str, chart)) for k, chart in enumerate(CHARTS)]
        (bids / "participants.tsv").write_text("\n".join(rows) + "\n")
        prepare_here(bids)
    return root


def told_of(world: Path) -> Iterator[tuple[str, bytes]]:
    """Prompts and values of every chart, in every form that they could take on a wire or in a log."""
    for bids in sorted((world / "sites").iterdir()):
        for person in read_participants(bids).values():
            chart = chart_of(person.clinical, FIELDS)
            for name in chart.known:
                value, given = getattr(chart, name), person.clinical[name]
                yield f"prompt of {name}", prompt(name, value).encode()
                yield f"value of {name}", f'"{name}": {json.dumps(given)}'.encode()
                yield f"rounded value of {name}", f'"{name}": {json.dumps(value)}'.encode()
                if isinstance(given, float):
                    yield f"{name} as text", str(given).encode()


def tokens_of(world: Path, text: str, settings: TextSettings) -> set[bytes]:
    """Every 16 bytes of every token of the charts, in three widths of number; but no row of ones, as weights have."""
    encoder, found = make_encoder(text, TEXT_WIDTH, settings), set()
    for bids in sorted((world / "sites").iterdir()):
        charts = [chart_of(person.clinical, FIELDS) for person in read_participants(bids).values()]
        tokens_BLD, _ = encoder.encode(charts, ["T1"] * len(charts), [("T2",)] * len(charts))
        for token_D in tokens_BLD[:, 2:].flatten(0, 1).numpy():
            for kind in FLOATS:
                numbers, n = token_D.astype(kind), 16 // np.dtype(kind).itemsize
                pieces = [numbers[i : i + n] for i in range(len(numbers) - n + 1)]
                found |= {piece.tobytes() for piece in pieces if len(set(abs(piece).tolist())) > 1}
    return found


def runs_in(data: bytes, runs: set[bytes]) -> set[bytes]:
    """Those of the runs that are in the data, at whatever byte they begin."""
    heads = np.unique(np.array([np.frombuffer(run[:8], np.uint64)[0] for run in runs]))
    lengths = {len(run) for run in runs}
    found = set()
    for shift in range(min(8, max(0, len(data) - 15))):
        words = np.frombuffer(data, np.uint64, count=(len(data) - shift) // 8, offset=shift)
        at = heads[np.searchsorted(heads, words).clip(max=len(heads) - 1)]
        starts = (8 * np.flatnonzero(at == words) + shift).tolist()
        found |= {data[i : i + size] for i in starts for size in lengths} & runs
    return found


@pytest.mark.parametrize("text", ["builtin", "openai_compatible"])
def test_no_prompt_no_token_and_no_value_of_a_chart_leaves_or_is_logged(
    text: str,
    charted_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Replies, logs, what is printed, all that the coordinator keeps (and mirrors to MLflow), each site's cache.

    One site has another language model under the same name: it is refused, and nothing of it is averaged.
    """
    from shared.clinical.attach import planned_fingerprint

    caplog.set_level(logging.DEBUG)
    server, other = EmbeddingsServer(), EmbeddingsServer()
    other.turn = 1.0
    monkeypatch.setenv("LACUNA_TEXT_URL", server.url)
    monkeypatch.setenv("LACUNA_TEXT_MODEL", "tiny")
    monkeypatch.setenv("LACUNA_TEXT_DIMENSIONS", str(TEXT_WIDTH))
    try:
        settings = TextSettings(url=server.url, model="tiny", dimensions=TEXT_WIDTH)
        options = {**ACA, "text": text, "text_width": TEXT_WIDTH}
        made = Choice(name="aca_diff", options=options)
        print_ = planned_fingerprint(dataclasses.replace(config(charted_world), method=made).build_method(), settings)
        choice = Choice(name="aca_diff", options={**options, "text_fingerprint": print_})
        wanted = dataclasses.replace(config(charted_world), method=choice, training=ACA_TRAINING)
        folder = write(tmp_path / "run", wanted)
        cohorts = simulation.find_cohorts(wanted)
        simulation.prepare_cohorts(wanted, cohorts)
        nodes = simulation._node_configs(wanted, folder, cohorts)
        if text == "builtin":
            del nodes["odd"]
        else:
            nodes["odd"]["text-url"] = other.url
        grid = RecordingGrid(simulation.client_app(), nodes)
        serve(grid, folder, quiet=True)
        tokens = tokens_of(charted_world, text, settings)
        assert (len(server.prompts) > 0) is (text == "openai_compatible")
    finally:
        server.close()
        other.close()
    if text == "openai_compatible":
        (refused,) = [data for site, data in grid.sent if site == "odd"]
        assert b"odd: its text encoder (openai_compatible v1 model tiny width 64) is not the plan's (openai" in refused
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and folder / "sites" not in p.parents]
    caches = sorted((folder / "sites").glob("*/text/*"))
    assert (len(caches) > 2 * 12) is (text == "openai_compatible")
    out = [("logs", caplog.text.encode()), ("printed", "".join(capfd.readouterr()).encode())]
    seen = [*grid.sent, *out, *((p.name, p.name.encode() + p.read_bytes()) for p in (*kept, *caches))]
    assert len(grid.sent) >= 2 * 6
    assert len(kept) >= 5
    secrets = list(told_of(charted_world))
    assert len(secrets) > 40
    assert search(seen, secrets) == []
    assert len(tokens) > 1000
    assert [where for where, data in seen if runs_in(data, tokens)] == []
    planted = b"\x00" * 5 + next(iter(tokens)) + b"\x00"
    assert len(runs_in(planted, tokens)) == 1, "it would be found"
    assert search([("north", b"0" + secrets[0][1])], secrets) != []


def test_the_search_finds_what_is_planted(leaky_world: Path) -> None:
    """The test above could fail: each kind of secret is found when it is there."""
    wanted = config(leaky_world)
    simulation.prepare_cohorts(wanted, simulation.find_cohorts(wanted))
    secrets = list(secrets_of(leaky_world, wanted))
    for what, secret in secrets:
        assert search([("north", b"\x08\x01" + secret + b"\x10")], [(what, secret)]) == [f"north: {what}"]
    rare = [what for what, _ in secrets if what.startswith("how many have")]
    assert len(rare) >= 5, "small cells to look for"
    pixels = pixels_of(leaky_world, wanted)
    cohort = Cohort.open(cache_folder(leaky_world / "sites" / "north", wanted.grid))
    (alone,) = [one.name for one in cohort.subjects if "FLAIR" in one.modalities]
    flair = np.load(cohort.folder / alone / "vol.npy").astype(np.float64)[:, 2]
    forms = [flair.astype(kind) for kind in FLOATS] + [(flair * 2 - 1).astype(kind) for kind in FLOATS]
    for form in (*forms, np.round(flair * 2**BITS).astype(np.int64)):
        first = form[len(form) // 3 : len(form) // 3 + 1]  # no slice in particular
        assert runs_in(b"\x08" + first.tobytes(), pixels), form.dtype


def test_every_reply_stands_in_the_sites_ledger_with_its_hash(leaky_world: Path, tmp_path: Path) -> None:
    wanted = config(leaky_world)
    folder = write(tmp_path / "run", wanted)
    cohorts = simulation.find_cohorts(wanted)
    simulation.prepare_cohorts(wanted, cohorts)
    grid = RecordingGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    serve(grid, folder, quiet=True)
    for site in cohorts:
        entries = list(Ledger(folder / "sites" / site / "ledger.jsonl").entries())
        assert len(entries) == sum(name == site for name, _ in grid.sent)
        assert all(len(entry["sha256"]) == 64 for entry in entries)
        links = [entry["before"] for entry in entries]
        assert links == [entry["fields"]["ledger.before"] for entry in entries]  # each reply carries its entry's link


def test_an_unknown_error_says_only_its_kind(
    leaky_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception's text may hold a subject's name; it stays at the site."""
    from client.round import work

    def fail(*_: object) -> torch.Tensor:
        raise KeyError("sub-northsecret000")

    monkeypatch.setattr(work, "do_round", fail)
    wanted = config(leaky_world, retries=0)
    folder = write(tmp_path / "run", wanted)
    cohorts = simulation.find_cohorts(wanted)
    simulation.prepare_cohorts(wanted, cohorts)
    grid = RecordingGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    from shared.base.errors import RunFailed

    with pytest.raises(RunFailed, match="KeyError in local work, see its log"):
        serve(grid, folder, quiet=True)
    assert search(grid.sent, [("id", b"northsecret")]) == []
