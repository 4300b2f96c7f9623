"""A coordinator, a site, and one message after the other that nobody would send to them (support/rounds/fuzz.py)."""

import copy
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from support.cohort.worlds import write_world
from support.model.bundles import bundle as fab
from support.rounds.federation import config, write
from support.rounds.mutate import Mutator
from support.rounds.relay import leader_of, reworded
from support.rounds.spoilt import sign

from client.app import app
from client.site import bundle_guard, plans
from client.site.ledger import LEDGER
from client.site.withdrawn import TRAINED
from server.federation.lead import Lead
from server.flower import give_id
from server.journal import receipts
from server.journal.events import View
from server.journal.receipts import Receipts
from server.rounds.admission import admit
from server.rounds.collect import Answers, Ask, Asked, Collector
from server.rounds.lean.down import Down
from server.rounds.ledgers import Ledgers
from server.rounds.roster import Handshake, Roster, check_coverage, mixed
from server.rounds.spool import Shelf
from server.runs import simulation
from server.runs.local_grid import LocalGrid
from shared.base.errors import DataError, LacunaError, PlanRefused, UpdateRejected
from shared.base.options import plain
from shared.base.owners import frozen
from shared.base.records import Inventory, RoundPlan, Spent, Update
from shared.model import bundle
from shared.plan import sealed, wire
from shared.plan.settings import Limits
from shared.trust import kit
from shared.trust.leaving import Recalled, read_recalled, write_recalled

SITES = {"north": [("T1", "T2")] * 5, "east": [("T1", "FLAIR")] * 5, "south": [("T1", "T2", "FLAIR")] * 5}
BOOKS = (LEDGER, receipts.FILE, TRAINED)
SHARES = {  # of all messages, by what they claim to be
    "updates": 0.28,
    "handshakes": 0.14,
    "claims": 0.14,
    "questions": 0.12,
    "plans": 0.12,
    "bundles of runs": 0.08,
    "bundles of models": 0.06,
    "kits and lists": 0.06,
}

Shot = Callable[[], str]  # one message: gives the name of the error it ended in, or "taken"


def ended(do: Callable[[], object], *named: type[LacunaError]) -> str:
    """Any other error is a crash, and goes on up."""
    try:
        do()
    except named as error:
        text = str(error)
        assert 0 < len(text) < 4000, f"{len(text)} characters of a refusal"
        return type(error).__name__
    return "taken"


class Range:
    """A federation of three small sites, its run, and whoever shoots at it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.mutator, self.dice = Mutator(seed), Mutator(seed + 1).dice
        self.world = write_world(folder / "world", SITES)
        self.config = config(self.world, rounds=2)
        self.run = write(folder / "run", self.config)
        self.settings = self.config.for_sites()
        nodes = simulation._node_configs(self.config, self.run, simulation.find_cohorts(self.config))
        self.grid = LocalGrid(simulation.client_app(), nodes)
        self.lead = Lead.read(self.run)
        self.state = self.run / "sites" / "east"
        self.context = Context(run_id=1, node_id=2, node_config=dict(nodes["east"]), state=RecordDict(), run_config={})
        self.method = self.config.build_method()
        net = self.settings.build_net(self.method)
        self.weights = {name: value.detach() for name, value in net.state_dict().items()}
        self.owners = self.settings.owners(self.method, net, "fit")
        self.plan = RoundPlan(
            run="run",
            phase="fit",
            round=0,
            config=self.settings.text(),
            schema=self.settings.schema,
            weights=self.weights,
        )
        self.packed = wire.pack_weights(self.weights)
        self.asked = "ab" * 32  # the hash of what the coordinator asked east
        self._coordinator()
        self._others(folder)
        self.shots: Mapping[str, Shot] = {
            "updates": self.update,
            "handshakes": self.handshake,
            "claims": self.claim,
            "questions": lambda: self.question(self.query),
            "plans": lambda: self.question(self.a_plan),
            "bundles of runs": self.run_bundle,
            "bundles of models": self.model_bundle,
            "kits and lists": self.kit_or_list,
        }

    # --- at the coordinator

    def _coordinator(self) -> None:
        self.ledgers = Ledgers(self.run / "ledgers.json", "off")
        self.collector = Collector(
            grid=self.grid,
            federation=self.config.federation,
            lead=self.lead,
            ledgers=self.ledgers,
            receipts=Receipts(self.run),
            view=View(),
            down=Down(file=self.run / "step", how="fp32"),
        )
        around = frozen(self.weights, self.owners)

        def take(update: Update) -> None:
            admit(update, self.plan, owners=self.owners, frozen=around, limits=Limits(), samples=16)
            self.ledgers.accept(update, {})
            shelf.drop("east")  # as at the round's end

        shelf = Shelf(self.run / "spool")
        self.ask = Ask(plan=self.plan, sites=("east",), most=1 << 24, shelf=shelf, take=take)
        delta = {name: torch.full_like(self.weights[name], 1e-3) for name in self.owners}
        counts = dict.fromkeys(("shared", *(f"{way}:{m}" for way in ("from", "to") for m in ("T1", "T2", "FLAIR"))), 8)
        self.good = Update(
            site="east",
            run="run",
            phase="fit",
            round=0,
            schema=self.plan.schema,
            delta=delta,
            counts=counts,
            metrics={"loss": 0.5, "samples": 16.0},
            frozen=around,
        )
        self.good_update = self._sealed(wire.pack_update(self.good))
        self.good_inventory = self._sealed(
            wire.pack_inventory(Inventory(site="east", schema=self.plan.schema, subjects=5, patterns={("T1",): -5}))
        )
        self.good_refusal = self._sealed(wire.pack_refusal("east", PlanRefused("east: no")))
        self.spent = Spent(
            ledger="ab" * 16, sequence=7, head="cd" * 32, epsilon=4.0, budget=8.0, delta=1e-5, size=70, others=0
        )
        self.claims = Ledgers(self.run / "claims.json", "on")
        self.claims.accept(replace(self.good, spent=self.spent), {})

    def _sealed(self, content: RecordDict) -> RecordDict:
        sealed.seal(content, "0" * 64)
        sign(content, self.state, "east", self.asked)
        return content

    def reply(self, good: RecordDict) -> Message:
        """Changed on the way; or changed by the site, and signed."""
        content = self.mutator.content(good)
        if self.dice.random() < 0.5:
            sign(content, self.state, "east", self.asked)
        question = Message(RecordDict(), 2, "train")
        give_id(question)
        return Message(content, reply_to=question)

    def update(self) -> str:
        reply = self.reply(self.good_update if self.dice.random() < 0.9 else self.good_refusal)
        asked, roster = Asked(question=self.asked, bytes=0), Roster(nodes={}, inventories={}, refusals={})
        answers = Answers()
        found = self.collector._received(reply, "east", self.ask, answers, roster, asked)
        assert found.status in ("ok", "rejected", "refused", "error"), found
        assert found.reason or found.status == "ok"
        assert found.reason.isprintable()
        assert (found.status == "ok") is (answers.ok == ["east"])
        return "taken" if found.status == "ok" else found.status

    def handshake(self) -> str:
        said: list[str] = []
        hand = Handshake(
            grid=self.grid,
            settings=self.settings,
            federation=self.config.federation,
            run="run",
            lead=self.lead,
            check=self.ledgers.greet,
            say=said.append,
        )
        hand.questions[2] = self.asked
        roster = Roster(nodes={}, inventories={}, refusals={})
        hand._hear(2, self.reply(self.good_inventory if self.dice.random() < 0.9 else self.good_refusal), roster)
        if roster.nodes:  # what is made of it before the first round
            assert list(roster.nodes) == ["east"]
            with suppress(PlanRefused):
                json.dumps(plain(check_coverage(roster, self.method, None)), allow_nan=False)
            roster.patterns(self.method.modalities), roster.willing("fit"), mixed(roster.inventories)
            return "taken"
        assert len(said) == 1
        return "refused" if hand.settled else "waits"

    def claim(self) -> str:
        """A word on a budget, in an update that is whole besides: stored only where it can be true."""
        text = self.mutator.text(wire._pack_spent(replace(self.spent, sequence=11, head="11" * 32)))
        before = self.claims.last("east")
        message = Message(copy.deepcopy(self.good_update), reply_to=self.reply(RecordDict()))
        message.content.config_records["update"]["spent"] = text

        kept, stored = (self.run / "claims.json").read_bytes(), False

        def take() -> None:
            nonlocal stored
            update = wire.unpack_update(message, "east")
            self.claims.accept(update, {})
            stored = True
            assert plain(Ledgers(self.run / "claims.json", "on").last("east")) == plain(update.spent)
            self.claims.accept(replace(update, spent=replace(self.spent, sequence=2**62)), {})

        how = ended(take, UpdateRejected)
        assert stored or (self.run / "claims.json").read_bytes() == kept, "what was rejected is not kept"
        if self.claims.last("east") != before:  # one that could be true
            (self.run / "claims.json").unlink()
            self.claims = Ledgers(self.run / "claims.json", "on")
            self.claims.accept(replace(self.good, spent=self.spent), {})
        return how

    # --- at a site

    def query(self) -> RecordDict:
        query = wire.Query(run="run", config=self.plan.config, schema=self.plan.schema)
        return wire.pack_query(query, self.lead.leader, until=time.time() + 60)

    def a_plan(self) -> RecordDict:
        return wire.pack_plan(self.plan, self.packed, self.lead.leader, to="east", until=time.time() + 60)

    def question(self, make: Callable[[], RecordDict]) -> str:
        """Changed by a relay; or changed words under the run's own key."""
        content, kind = make(), "train" if make == self.a_plan else "query"
        if self.dice.random() < 0.4:
            (name,) = {"plan", "query"} & set(content.config_records)
            words = json.loads(bytes(content.config_records[name]["text"]))
            changed = self.mutator.json(words)
            changed = changed if isinstance(changed, dict) else words
            try:
                reworded(content, leader_of(self.run), **{**changed, "round": changed.get("round", 9)})
            except (ValueError, TypeError, OverflowError):  # nothing that can be written down
                content = self.mutator.content(content)
        else:
            content = self.mutator.content(content)
        message = Message(content, 2, kind)
        give_id(message)
        reply = app(message, self.context)
        assert reply.has_content(), reply.error
        refusal = wire.refusal_in(reply.content)
        if refusal is None:
            return "taken"
        assert not str(refusal).endswith("in local work, see its log"), refusal
        return type(refusal).__name__

    def _others(self, folder: Path) -> None:
        from support.flower.federations import enter, make, signer
        from support.model.models import AMM_TINY, release, signed

        self.fab = fab({})
        self.model, _ = signed(folder / "signed", release(folder / "final", "amm_diff", AMM_TINY))
        self.own = Ed25519PrivateKey.generate()
        federation = make(folder / "federation")
        enter(federation, folder / "west", "west")
        self.kit, self.trusted = (federation / "kits" / "west.kit").read_bytes(), signer(federation)
        self.list = write_recalled(Recalled(federation="f"), self.own)

    def run_bundle(self) -> str:
        content = self.mutator.bytes(self.fab)
        return ended(lambda: bundle_guard.check(content, hashlib.sha256(content).hexdigest()), PlanRefused)

    def model_bundle(self) -> str:
        """Its head changed, and half of the time signed again by whoever did it."""
        head, signature = self.model / bundle.MANIFEST, self.model / bundle.SIGNATURE
        before = head.read_bytes(), signature.read_bytes()
        try:
            changed = self.mutator.bytes(before[0])
            head.write_bytes(changed)
            resigned = self.dice.random() < 0.6
            signature.write_bytes(bundle._FOLDER.sign(changed, self.own) if resigned else self.mutator.bytes(before[1]))
            return ended(lambda: bundle.load(self.model, trusted=None), DataError)
        finally:
            head.write_bytes(before[0])
            signature.write_bytes(before[1])

    def kit_or_list(self) -> str:
        if self.dice.random() < 0.5:
            content = self.mutator.bytes(self.kit)
            return ended(lambda: kit.read_kit(content, "kit", trusted=self.trusted), DataError)
        content = self.mutator.bytes(self.list)
        return ended(lambda: read_recalled(content, "list", self.own.public_key()), DataError)

    # --- what must not change

    def files(self) -> dict[Path, str]:
        """A hash of every file but the books, and databases, whose pages move when they are read."""
        return {
            path: hashlib.sha256(path.read_bytes()).hexdigest()
            for root in (self.run, self.world, self.model)
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and path.name not in (*BOOKS, "claims.json", ".ledgers.json.lock")
            and not path.name.startswith(plans.FILE)
        }

    def asked_of_east(self) -> set[tuple[str, str]]:
        """The plans that the site knows of."""
        if not (self.state / plans.FILE).exists():
            return set()
        with sqlite3.connect(self.state / plans.FILE) as file:
            return set(file.execute("SELECT run, config FROM plans"))
