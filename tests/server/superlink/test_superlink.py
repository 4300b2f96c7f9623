"""A real SuperLink takes the keys that were admitted and no others."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from support.flower.federations import NOW, enter, make, site
from support.flower.superlinks import superlink, supernode, wait

from client.site import enrol
from server.federation import provision
from server.superlink.superlink import Synced, sync
from shared.base.errors import ConfigError

pytestmark = pytest.mark.slow  # left out of `make fast`


def statuses(folder: Path) -> dict[str, str]:
    """Of the nodes that the SuperLink knows, as its database has them."""
    with sqlite3.connect(f"file:{folder / 'state.db'}?mode=ro", uri=True) as database:
        return dict(database.execute("SELECT name, status FROM node ORDER BY registered_at"))


@pytest.mark.slow
def test_a_superlink_takes_admitted_keys_and_no_unknown_revoked_or_smuggled_ones(tmp_path: Path) -> None:
    federation, other = make(tmp_path / "federation"), make(tmp_path / "other")
    for name in ("north", "south"):
        enter(federation, tmp_path / name, name)
    unknown = tmp_path / "unknown"  # has a kit's CA and a key of its own, which nobody admitted
    site(unknown, "unknown")
    shutil.copytree(tmp_path / "north" / "federation", unknown / "federation")
    with superlink(federation, tmp_path) as port:
        here = f"127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=rf"superlink={here}: can't be reached.*certificate verify failed"):
            sync(other, here)
        assert sync(federation, here) == Synced(registered=("north", "south"))
        assert sync(federation, here) == Synced()
        with supernode(tmp_path / "north", port, tmp_path) as north:
            wait(lambda: statuses(tmp_path).get("north") == "online", north)
            provision.revoke(federation, "north", now=NOW)
            assert sync(federation, here) == Synced(unregistered=("north",))
            wait(lambda: north.poll() is not None)  # the SuperLink ends it, not we
        with supernode(tmp_path / "north", port, tmp_path), supernode(unknown, port, tmp_path):
            for name in ("north", "unknown"):
                wait(lambda: "Exit Code: 305" in (tmp_path / f"{name}.log").read_text())  # noqa: B023
        assert statuses(tmp_path) == {"north": "unregistered", "south": "registered"}

        # Flower takes no key twice; another key of the same site is let in
        request = tmp_path / "north" / "enrolment" / "north.request.json"
        provision.admit(federation, request, again=True, now=NOW)
        assert sync(federation, here) == Synced(spent=("north",))
        again = enrol.init_site(tmp_path / "north", "north", again=True).request
        provision.rotate_site(federation, "north", again, now=NOW)
        assert sync(federation, here) == Synced(registered=("north",))

        # who reaches the control API can smuggle a key in; the next sync puts it out and touches nobody else
        provision.admit(other, site(tmp_path / "evil", "evil"), now=NOW)
        shutil.copytree(federation / "sites", other / "sites", dirs_exist_ok=True)
        shutil.copy(federation / "ca" / "ca.crt", other / "ca" / "ca.crt")  # so that it finds the server genuine
        assert sync(other, here) == Synced(registered=("evil",))
        done = sync(federation, here)
        assert (done.registered, done.unregistered, done.spent, len(done.strangers)) == ((), (), (), 1)
    with pytest.raises(ConfigError, match="can't be reached"):
        sync(federation, here)
