"""deploy/runbook.md, provisioning, as a new coordinator and a new site follow it: its own lines, in empty folders."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.flower.superlinks import superlink
from typer.testing import CliRunner

from client.cli.cli import app as lacuna_site
from server.cli.cli import app as lacuna

pytestmark = pytest.mark.slow  # left out of `make fast`

RUNBOOK = Path(__file__).resolve().parents[3] / "deploy" / "runbook.md"
PRINT = re.compile(r"^ +((?:[0-9a-f]{4} ){7}[0-9a-f]{4})$", re.MULTILINE)


def commands() -> list[str]:
    """What stands in the runbook to be typed."""
    blocks = re.findall(r"```sh\n(.*?)```", RUNBOOK.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


class Desk:
    """One person's machine: an empty folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.folder, self._monkeypatch = folder, monkeypatch

    def types(self, line: str, heard: str = "") -> str:
        line = re.sub(r"(xxxx|yyyy)( (xxxx|yyyy)){7}", heard, line)
        program, *words = shlex.split(line)
        self._monkeypatch.chdir(self.folder)
        done = CliRunner().invoke({"lacuna": lacuna, "lacuna-site": lacuna_site}[program], words)
        assert done.exit_code == 0, f"{line}\n{done.stderr}\n{done.exception!r}"
        return done.stdout


@pytest.mark.slow
def test_the_runbook_leads_from_two_empty_folders_to_a_federation_and_out_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (
        init,
        ask,
        admit,
        sync,
        listing,
        join,
        up,
        again,
        rotate,
        sync2,
        rejoin,
        server,
        ca,
        server2,
        signing,
        amend,
        revoke,
        sync3,
    ) = commands()
    coordinator, site = Desk(tmp_path / "coordinator", monkeypatch), Desk(tmp_path / "site", monkeypatch)
    request, kit = site.folder / "state/enrolment/north.request.json", coordinator.folder / "federation/kits/north.kit"

    coordinator.types(init)
    (told,) = PRINT.findall(site.types(ask))
    shutil.copy(request, coordinator.folder)  # by mail
    own, signer = PRINT.findall(coordinator.types(admit, told))
    assert own == told
    with superlink(coordinator.folder / "federation", tmp_path) as port:
        assert sync == sync2 == sync3
        sync = sync.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        assert "registered north" in coordinator.types(sync)
        assert re.search(r"north +admitted .* yes ", coordinator.types(listing))
        shutil.copy(kit, site.folder)
        assert "north is part of strokes (revision 1)" in site.types(join, signer)
        assert Path(shlex.split(up)[3]).parts[0] == "state"
        assert (site.folder / shlex.split(up)[3]).is_file()

        (told,) = PRINT.findall(site.types(again))
        shutil.copy(request, coordinator.folder)
        coordinator.types(rotate, told)
        assert coordinator.types(sync).split() == ["registered", "north", "unregistered", "a", "key", "of", "north"]
        shutil.copy(kit, site.folder)
        assert "new key is in use" in site.types(rejoin)

        assert "restart the server" in coordinator.types(server)
        for number, line in enumerate((ca, server2, signing, amend), start=2):
            assert f"revision {number}" in coordinator.types(line)
            shutil.copy(kit, site.folder)
            assert f"revision {number}" in site.types(rejoin)
        coordinator.types(revoke)
        # the SuperLink still shows its first certificate, which the new CA did not sign: it is restarted
    with superlink(coordinator.folder / "federation", tmp_path) as port:
        sync = sync3.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        assert coordinator.types(sync).split() == ["unregistered", "a", "key", "of", "north"]
