"""What a site is asked beside a round's work where the coordinator sees sums alone, and what it answers; no weights.

deal      before a round: keys and shares for one circle        reveal    after it: what lets one sum be seen
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from flwr.app import ConfigRecord, RecordDict

from shared.base.errors import ConfigError, DataError, UpdateRejected
from shared.base.options import build, plain
from shared.base.vocabulary import Owner, SiteName
from shared.plan import wire
from shared.trust.secure import sharing
from shared.trust.secure.circle import SEALED, Card, Circle, Sealed
from shared.trust.warrant import Leader, Reader

Shares: TypeAlias = dict[Owner, dict[SiteName, bytes]]  # by the group, and whose secret it is of
_WRONG = (ConfigError, DataError, ValueError, TypeError, AttributeError, LookupError, RecursionError)


# --- coordinator -> site


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    config: str
    circle: Circle

    def pack(self, leader: Leader, *, to: SiteName, until: float) -> RecordDict:
        return _pack(wire.DEAL, self.circle.run, plain(self), leader, to, until)

    @staticmethod
    def read(content: RecordDict, reader: Reader) -> "Deal":
        return _read(Deal, wire.DEAL, content, reader)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    config: str
    circle: Circle
    survivors: Mapping[Owner, tuple[SiteName, ...]]  # whose updates are in the sum of each group
    sealed: Mapping[SiteName, Mapping[Owner, str]]  # what the others dealt this site

    def pack(self, leader: Leader, *, to: SiteName, until: float) -> RecordDict:
        return _pack(wire.REVEAL, self.circle.run, plain(self), leader, to, until)

    @staticmethod
    def read(content: RecordDict, reader: Reader) -> "Reveal":
        return _read(Reveal, wire.REVEAL, content, reader)


def _pack(what: str, run: str, said: dict[str, Any], leader: Leader, to: SiteName, until: float) -> RecordDict:
    return wire.pack_aside(what, {**said, "run": run}, leader, to=to, until=until)


_T = TypeVar("_T", Deal, Reveal)


def _read(kind: type[_T], what: str, content: RecordDict, reader: Reader) -> _T:
    record = wire.unpack_aside(what, content, reader)
    try:
        found = build(kind, {key: record[key] for key in kind.__dataclass_fields__}, what)
        if found.circle.run != record["run"]:
            raise ValueError("its circle is of another run")
    except _WRONG as error:
        raise reader.refused(f"is malformed: {type(error).__name__}: {str(error)[:200]}") from None
    return found


# --- site -> coordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    card: Card
    sealed: Sealed

    def pack(self, site: SiteName) -> RecordDict:
        text = json.dumps(plain(self), sort_keys=True)
        return RecordDict({"dealt": ConfigRecord({"site": site, "dealt": text})})

    @staticmethod
    def read(content: RecordDict, circle: Circle, site: SiteName) -> "Dealt":
        """UpdateRejected unless it is of this site, and of every group and holder that the circle asks it for."""
        try:
            found = build(Dealt, json.loads(_text(content, "dealt", site)), "dealt")
            mine = dict(circle.of(site))
            wanted = {to: {owner for owner, holders in mine.items() if to in holders} for to in circle.boxes}
            if {to: set(its) for to, its in found.sealed.items()} != {to: its for to, its in wanted.items() if its}:
                raise ValueError("its shares are not those of the circle")
            if any(len(share) != SEALED for its in found.sealed.values() for share in its.values()):
                raise ValueError(f"a sealed share must have {SEALED} digits")
            if found.card.keys.keys() != mine.keys():
                raise ValueError("its keys are not those of the circle")
        except _WRONG as error:
            raise UpdateRejected(f"{site}: malformed deal: {type(error).__name__}: {str(error)[:200]}") from None
        return found


def pack_shares(site: SiteName, shares: Shares) -> RecordDict:
    text = json.dumps({owner: {of: share.hex() for of, share in its.items()} for owner, its in shares.items()})
    return RecordDict({"shares": ConfigRecord({"site": site, "shares": text})})


def read_shares(
    content: RecordDict, survivors: Mapping[Owner, tuple[SiteName, ...]], circle: Circle, site: SiteName
) -> Shares:
    """UpdateRejected unless they are of the groups that this site was asked for, and of holders of these.

    Of a holder whose share did not open there is none.
    """
    try:
        found = {
            str(owner): {str(of): bytes.fromhex(share) for of, share in its.items()}
            for owner, its in json.loads(_text(content, "shares", site)).items()
        }
        if found.keys() != {owner for owner in survivors if site in circle.groups[owner]}:
            raise ValueError("its shares are of other groups than were asked for")
        for owner, its in found.items():
            if not its.keys() <= {*circle.groups[owner]} or any(len(share) != sharing.SHARE for share in its.values()):
                raise ValueError(f"its shares of {owner} are of others than its holders")
    except _WRONG as error:
        raise UpdateRejected(f"{site}: malformed shares: {type(error).__name__}: {str(error)[:200]}") from None
    return found


def _text(content: RecordDict, what: str, site: SiteName) -> str:
    head = content.config_records[what]
    if head["site"] != site:
        raise ValueError(f"it calls itself {str(head['site'])[:64]!r}")
    return str(head[what])
