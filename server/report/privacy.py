"""The report's word on privacy: what may be said of the training, with its numbers, and what may not."""

from collections.abc import Mapping
from typing import Any

from server.report.page import Html, el, many, table
from shared.trust.claims import PrivacyRecord, not_claimed, read, statement

COLUMNS = ("site", "epsilon", "budget", "delta", "sigma", "q", "T", "C", "subjects, about", "other updates")


def privacy_section(model: Mapping[str, Any]) -> Html | None:
    """Of a released model's provenance; None before there is one."""
    if not model:
        return None
    record = read(model.get("provenance", {}))
    return many(
        [
            el("h2", "What may be said of privacy"),
            el("ul", *(el("li", text) for text in statement(record))),
            _certificates(record),
            el("details", el("summary", "What is not claimed"), el("ul", *(el("li", text) for text in not_claimed()))),
        ]
    )


def _certificates(record: PrivacyRecord) -> Html | None:
    if not record.private:
        return None
    rows = [
        [
            el("th", one.site, scope="row"),
            f"{one.epsilon:.3f}",
            f"{one.budget:g}",
            f"{one.delta:g}",
            f"{one.noise:g}",
            f"{one.rate:g}",
            f"{one.steps:,}",
            f"{one.clip:g}",
            f"{one.size:,}",
            el("td", f"{one.others:,}", class_="n warned" if one.others else "n"),
        ]
        for one in record.private
    ]
    rows += [[el("th", name, scope="row"), el("td", "not private", class_="warned")] for name in record.not_private]
    return table(COLUMNS, rows, numbers=range(1, len(COLUMNS)))
