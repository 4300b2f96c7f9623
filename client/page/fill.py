"""Filling in what a subject lacks, watching that, and sending it to the PACS after a second look."""

from dataclasses import dataclass
from typing import Any

from client.page import filled
from client.page.index import Entry, Index
from client.page.jobs import Jobs
from client.page.place import Place, said_by
from shared.base.errors import ConfigError
from shared.data.modalities import in_order, parse
from shared.page.ask import Answer, Ask, see
from shared.page.look import Look

SAMPLERS = ("mean", "multistep", "ddim", "ancestral")  # as `lacuna-site synthesize --help` has them
MOST_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Filling:
    place: Place
    index: Index
    jobs: Jobs
    look: Look

    def form(self, ask: Ask) -> Answer:
        entry = self.index.find(ask.where["handle"])
        bundles = [(name, folder.name, said_by(folder)) for name, folder in self.place.named()]
        known = in_order({m for _, _, record in bundles for m in record["modalities"]})
        wanted = ask.query.get("target")
        return self.look.page(
            ask,
            "fill.html.j2",
            entry=entry,
            bundles=bundles,
            known=known,
            wanted=[wanted] if wanted in known else [m for m in known if m not in entry.files],
            samplers=SAMPLERS,
            under_way=self.jobs.of(entry.handle),
        )

    def start(self, ask: Ask) -> Answer:
        entry = self.index.find(ask.where["handle"])
        bundles = dict(self.place.named())
        if ask.said("bundle") not in bundles:
            raise ConfigError("bundle: choose one of those that this page was opened with")
        targets = [parse(name) for name in ask.form.get("target", ())]
        if not targets:
            raise ConfigError("target: choose at least one modality")
        sampler = ask.said("sampler") or None
        if sampler is not None and sampler not in SAMPLERS:
            raise ConfigError(f"sampler={sampler!r}: must be one of {', '.join(SAMPLERS)}")
        order: dict[str, Any] = {
            "bundle": str(bundles[ask.said("bundle")]),
            "trust": str(self.place.trust),
            "subject": str(entry.folder),
            "out": str(self.place.filled),
            "targets": targets,
            "sampler": sampler,
            "samples": _number(ask.said("samples"), "samples", 1, MOST_SAMPLES),
            "seed": _number(ask.said("seed"), "seed", 0, 2**31 - 1) or 0,
            "force": ask.said("force") == "yes",
        }
        self._note(ask, "fill", entry, {"bundle": bundles[ask.said("bundle")].name, "targets": ", ".join(targets)})
        work = self.jobs.add("fill", entry.handle, ", ".join(targets), order)
        if work is None:
            raise ConfigError("too much waits already: look again when some of it is done")
        return see(f"/work/{work.id}")

    def watch(self, ask: Ask) -> Answer:
        work = self.jobs.find(ask.where["id"])
        entry = self.index.find(work.handle)
        return self.look.page(ask, "progress.html.j2" if ask.part else "work.html.j2", work=work, entry=entry)

    def stop(self, ask: Ask) -> Answer:
        work = self.jobs.find(ask.where["id"])
        self._note(ask, "stop", self.index.find(work.handle), {"work": work.kind, "targets": work.what})
        self.jobs.stop(work)
        return see(f"/work/{work.id}")

    def listing(self, ask: Ask) -> Answer:
        named = {entry.handle: entry.subject for entry in self.index.entries()}
        return self.look.page(ask, "works.html.j2", works=self.jobs.listing(), named=named)

    # --- to the PACS

    def look_again(self, ask: Ask) -> Answer:
        """What would be sent, and where to: nothing is sent yet."""
        entry = self.index.find(ask.where["handle"])
        return self.look.page(
            ask,
            "send.html.j2",
            entry=entry,
            made=filled.found(self.place.filled, entry.subject),
            push=self.place.push,
            known=(self.place.state / "provenance.json").is_file(),
        )

    def send(self, ask: Ask) -> Answer:
        entry, push = self.index.find(ask.where["handle"]), self.place.push
        made = filled.found(self.place.filled, entry.subject)
        chosen = {m: str(made[m].mean) for m in ask.form.get("target", ()) if m in made}
        if push is None:
            raise ConfigError("--push: this page was opened without a PACS")
        if not chosen or ask.said("sure") != "yes":
            raise ConfigError("sure: choose what is sent, and say that you looked at it")
        order: dict[str, Any] = {
            "state": str(self.place.state),
            "subject": str(entry.folder),
            "out": str(self.place.filled),
            "volumes": chosen,
            "push": push,
            "auth_file": None if self.place.auth_file is None else str(self.place.auth_file),
            "burn_in": ask.said("burn_in") == "yes",
        }
        self._note(ask, "send", entry, {"to": push, "targets": ", ".join(chosen)})
        work = self.jobs.add("send", entry.handle, ", ".join(chosen), order)
        if work is None:
            raise ConfigError("too much waits already: look again when some of it is done")
        return see(f"/work/{work.id}")

    def _note(self, ask: Ask, what: str, entry: Entry, about: dict[str, str]) -> None:
        self.place.decided.enter(ask, what, {"subject": entry.subject, **about})


def _number(text: str, key: str, least: int, most: int) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
        raise ConfigError(f"{key}={text[:20]!r}: must be {least} to {most}")
    return int(text)
