"""What leaves a site: every byte of every reply is recorded, and searched for what must never be in it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from support.federation import config, write
from support.worlds import SITES_MMSE, prepare_here, write_cohort

from client.ledger import Ledger
from server import runs, simulation
from server.local_grid import LocalGrid
from shared.config import Choice, Config
from shared.data.cohort import cache_folder
from shared.privacy import Privacy
from shared.training import PhaseTraining

pytestmark = pytest.mark.usefixtures("probe")


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
            for kind in (np.float16, np.float32, np.float64):
                packed = np.array([value] * 2, dtype=kind).tobytes()
                yield f"clinical {value} as {kind.__name__}, repeated", packed
            yield f"clinical {value} as text", str(value).encode()
        for volume in sorted(cache_folder(bids, wanted.grid).glob("*/vol.npy")):
            stack = np.load(volume)
            middle = stack[len(stack) // 2]
            for row in middle.reshape(-1, middle.shape[-1]):
                if np.count_nonzero(row) >= 6:
                    for kind in (np.float16, np.float32, np.float64):
                        for value in (row, row * 2 - 1):
                            yield f"image row as {kind.__name__}", value.astype(kind)[row != 0][:6].tobytes()


def search(sent: list[tuple[str, bytes]], secrets: list[tuple[str, bytes]]) -> list[str]:
    return [f"{site}: {what}" for site, data in sent for what, secret in secrets if secret in data]


@pytest.fixture(scope="module")
def leaky_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("leaky")
    for i, (site, pattern) in enumerate(
        {"north": ("T1", "T2"), "east": ("T1", "FLAIR"), "south": ("T2", "FLAIR")}.items()
    ):
        prepare_here(write_cohort(root / "sites" / site, site, [pattern] * 3, seed=i, mmse=SITES_MMSE))
    return root


METHODS = {
    "probe": (Choice(name="probe"), {"fit": PhaseTraining(rounds=2, steps=2, batch=2, lr=0.01)}),
    "amm_diff": (
        Choice(name="amm_diff", options={"modalities": ["T1", "T2", "FLAIR"], "size": "tiny", "anchor": "ridge"}),
        {
            "pretext": PhaseTraining(rounds=1, steps=2, batch=2, lr=0.001),
            "translate": PhaseTraining(rounds=1, steps=2, batch=2, lr=0.001),
        },
    ),
    "mmdm": (
        Choice(
            name="mmdm", options={"modalities": ["T1", "T2", "FLAIR"], "target": "FLAIR", "size": "tiny", "slab": 3}
        ),
        {"bridge": PhaseTraining(rounds=3, steps=2, batch=2, lr=0.001)},
    ),
}


PRIVATE = Privacy(mode="on", noise=2.0, rate=0.3, epsilon=100.0)


@pytest.mark.parametrize(
    ("method", "privacy"),
    [*((method, Privacy()) for method in METHODS), ("probe", PRIVATE), ("amm_diff", PRIVATE)],
    ids=[*METHODS, "probe, private", "amm_diff, private"],
)
def test_no_byte_that_a_site_sends_is_an_id_a_path_an_image_or_a_record(
    method: str, privacy: Privacy, leaky_world: Path, tmp_path: Path
) -> None:
    import dataclasses

    choice, training = METHODS[method]
    wanted = dataclasses.replace(config(leaky_world), method=choice, training=training, privacy=privacy)
    folder = write(tmp_path / "run", wanted)
    cohorts = simulation.find_cohorts(wanted)
    simulation.prepare_cohorts(wanted, cohorts)
    grid = RecordingGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    runs.serve(grid, folder, quiet=True)
    secrets = list(secrets_of(leaky_world, wanted))
    assert len(grid.sent) >= 3 * 3
    assert len(secrets) > 200
    assert search(grid.sent, secrets) == []


def test_the_search_finds_what_is_planted(leaky_world: Path) -> None:
    """The test above could fail: each kind of secret is found when it is there."""
    wanted = config(leaky_world)
    simulation.prepare_cohorts(wanted, simulation.find_cohorts(wanted))
    secrets = list(secrets_of(leaky_world, wanted))
    for what, secret in secrets[:: max(1, len(secrets) // 40)]:
        assert search([("north", b"\x08\x01" + secret + b"\x10")], [(what, secret)]) == [f"north: {what}"]


def test_every_reply_stands_in_the_sites_ledger_with_its_hash(leaky_world: Path, tmp_path: Path) -> None:
    wanted = config(leaky_world)
    folder = write(tmp_path / "run", wanted)
    cohorts = simulation.find_cohorts(wanted)
    simulation.prepare_cohorts(wanted, cohorts)
    grid = RecordingGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    runs.serve(grid, folder, quiet=True)
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
    from client import work

    def fail(*_: object) -> torch.Tensor:
        raise KeyError("sub-northsecret000")

    monkeypatch.setattr(work, "do_round", fail)
    wanted = config(leaky_world, retries=0)
    folder = write(tmp_path / "run", wanted)
    cohorts = simulation.find_cohorts(wanted)
    simulation.prepare_cohorts(wanted, cohorts)
    grid = RecordingGrid(simulation.client_app(), simulation._node_configs(wanted, folder, cohorts))
    from shared.errors import RunFailed

    with pytest.raises(RunFailed, match="KeyError in local work, see its log"):
        runs.serve(grid, folder, quiet=True)
    assert search(grid.sent, [("id", b"northsecret")]) == []
