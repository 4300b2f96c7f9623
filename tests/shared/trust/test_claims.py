"""A statement says the numbers that it was given, names all that was not private, and claims nothing else."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.base.errors import ConfigError, DataError
from shared.base.options import plain
from shared.base.records import Spent
from shared.trust.claims import (
    Certificate,
    Prior,
    PrivacyRecord,
    best_attack,
    not_claimed,
    privacy_of,
    read,
    short,
    statement,
)
from shared.trust.privacy import Privacy, PrivacyPlan, Query, noise_for
from shared.trust.privacy import epsilon as epsilon_of

pytestmark = pytest.mark.slow  # left out of `make fast`

NORTH = Certificate(
    site="north",
    epsilon=3.371,
    budget=7.5,
    delta=2e-5,
    noise=2.19,
    rate=0.125,
    clip=0.3,
    draws=4,
    slices=3,
    steps=207,
    size=240,
    ledger="ab12cd34ef56" + "0" * 20,
    sequence=214,
    head="f00dfeed1234" + "0" * 52,
    others=0,
)
EAST = dataclasses.replace(NORTH, site="east", epsilon=1.5, others=6, sums=1, sums_noise=4.5, sums_clip=0.7)
PRIOR = Prior(run="first", data="phantom", weights="c0ffee123456" + "0" * 52)
PRIVATE = PrivacyRecord(private=(NORTH,))
MIXED = PrivacyRecord(private=(NORTH, EAST), not_private=("south", "west"), prior=PRIOR)
RECORDS = {"private": PRIVATE, "mixed": MIXED, "none": PrivacyRecord(), "some": PrivacyRecord(not_private=("south",))}

FORBIDDEN = (
    "anonym",
    "complian",
    "comply",
    "gdpr",
    "hipaa",
    "guarantee",
    "safe",
    "secure",
    "impossible",
    "cannot be",
    "fully",
    "never",
    "no risk",
    "memor",
    "de-identif",
    "unlearn",
    "hospital",
    "certif",
)


@pytest.mark.parametrize(
    "said",
    [
        "(3.38, 2e-05)",
        "epsilon 7.5",
        "207 steps (T)",
        "rate 0.125 (q)",
        "about 240",
        "to 0.3 (C)",
        "2.19 x C (sigma)",
        "3 slices of a drawn subject",
        "4 draws of noise",
        "ledger ab12cd34ef56 stood at row 214",
        "head f00dfeed1234",
        "unit is one subject",
        "add or remove one subject",
        "Poisson sampling",
        "Gaussian noise",
        "RDP gates, PRV reports",
        "random weights",
    ],
)
def test_every_number_that_goes_in_comes_out(said: str) -> None:
    assert said in " ".join(statement(PRIVATE))


def test_no_figure_of_the_statement_comes_from_nowhere() -> None:
    """The numbers that are printed are those of the record, and the odds that follow from them."""
    known = {3.38, 2e-5, 7.5, 207, 0.125, 240, 0.3, 2.19, 3, 4, 214, 5}
    known.add(math.ceil(best_attack(NORTH.epsilon, NORTH.delta) * 1e4) / 100)
    text = re.sub(r"(ledger|head) \w+", r"\1", " ".join(statement(PRIVATE)))
    assert {float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)} <= known


@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 1.0, 2.001, 3.3700000001, 7.999])
def test_epsilon_is_rounded_up(epsilon: float) -> None:
    said = " ".join(statement(PrivacyRecord(private=(dataclasses.replace(NORTH, epsilon=epsilon),))))
    (found,) = re.findall(r"north: \(([\d.]+), 2e-05\)", said)
    assert epsilon - 1e-9 <= float(found) < epsilon + 0.01


def test_a_site_without_privacy_among_private_ones_is_named() -> None:
    said = statement(MIXED)
    assert "the updates of south, west are not private" in said[0]
    assert "The updates of north, east are differentially private" in said[0]
    for record in (MIXED, PrivacyRecord(private=(NORTH,), not_private=("south",))):
        assert "south" in " ".join(statement(record))
        assert re.search(r"; south(, west)? without", short(record))
    assert "no other site" not in " ".join(said)
    assert "no other site sent any" in statement(PRIVATE)[0]


def test_a_site_of_both_kinds_is_not_called_private() -> None:
    said = statement(PrivacyRecord(private=(NORTH, EAST), not_private=("north",)))[0]
    assert said.startswith(
        "The updates of east are differentially private, for its own subjects; updates of both kinds came"
    )
    alone = statement(PrivacyRecord(private=(NORTH,), not_private=("north",)))[0]
    assert "differentially private" not in alone


def test_what_else_left_the_cohort_and_what_came_before_is_said() -> None:
    said = " ".join(statement(MIXED))
    assert "6 updates left the cohort of east without differential privacy" in said
    assert "By its ledger no update left without differential privacy: north." in said
    assert "1 sum over the whole cohort, each subject's part clipped to 0.7, with noise of 4.5 x that" in said
    assert "run first (weights c0ffee123456)" in said
    assert "phantoms" in said
    assert "6 other updates of its cohorts without" in short(MIXED)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (None, "does not say what it was trained on: that is outside of all figures here"),
        ("OpenNeuro ds1, public", "trained on: OpenNeuro ds1, public. That is outside of all figures here"),
    ],
)
def test_a_prior_that_is_not_of_phantoms_is_outside_of_the_figures(data: str | None, line: str) -> None:
    record = PrivacyRecord(private=(NORTH,), prior=dataclasses.replace(PRIOR, data=data))
    assert line in " ".join(statement(record))
    assert "phantom" not in " ".join(statement(record))
    assert "from prior first" in short(record)


def test_a_prior_that_was_private_itself_brings_its_own_figures() -> None:
    """The same site's ledger counted those steps too; another site's figure is the prior's alone."""
    prior = Prior(run="first", data=None, weights=PRIOR.weights, privacy=short(PrivacyRecord(private=(EAST,))))
    said = statement(PrivacyRecord(private=(NORTH,), prior=prior))[-1]
    assert "which says of itself: differential privacy per subject at east: epsilon at most 1.5" in said
    assert "for any other only the prior's own holds" in said
    assert "does not say" not in said


def test_a_run_without_privacy_says_so_in_one_sentence() -> None:
    for record in (RECORDS["none"], RECORDS["some"]):
        assert len(statement(record)) == 1
        assert "No differential privacy was used" in statement(record)[0]
        assert short(record) == "no differential privacy"


@pytest.mark.parametrize("name", RECORDS)
def test_nothing_is_claimed_that_is_not_known(name: str) -> None:
    record = RECORDS[name]
    for text in (*statement(record), short(record)):
        assert [word for word in FORBIDDEN if word in text.lower()] == []


@pytest.mark.parametrize(
    "what",
    [
        "anonymous",
        "GDPR, HIPAA",
        "memorised",
        "several sites",
        "hospital",
        "logs",
        "replacing one subject",
        "side channels",
        "floating-point",
        "staff",
    ],
)
def test_what_is_not_claimed_is_said(what: str) -> None:
    assert all(text.startswith("Not claimed: ") for text in not_claimed())
    assert any(what in text for text in not_claimed())


def test_the_facts_go_through_json() -> None:
    provenance = {"private": True, "privacy": json.loads(json.dumps(plain(MIXED)))}
    assert read(provenance) == MIXED
    said = privacy_of(provenance)
    assert said == {"short": short(MIXED), "statement": statement(MIXED), "not_claimed": not_claimed()}
    assert privacy_of({})["statement"] == statement(PrivacyRecord())


@pytest.mark.parametrize(
    ("provenance", "line"),
    [
        ({"private": True}, "provenance.private=true: needs provenance.privacy"),
        ({"privacy": "yes"}, "provenance.privacy='yes': must be a group of keys"),
        ({"privacy": {"private": [{"site": "north"}]}}, "provenance.privacy.private"),
        ({"privacy": {"private": [plain(NORTH) | {"epsilon": math.inf}]}}, "epsilon=inf: must be 0 or more and finite"),
        ({"privacy": {"private": [plain(NORTH)] * 2}}, "each site once"),
        ({"privacy": {"epsilon": 1}}, "provenance.privacy.epsilon=1: unknown key"),
    ],
)
def test_facts_that_are_not_whole_are_no_statement(provenance: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=re.escape(line)):
        statement(read(provenance))


def test_a_certificate_is_the_ledgers_word_and_the_plans_mechanism() -> None:
    spent = Spent(
        ledger=NORTH.ledger, sequence=214, head=NORTH.head, epsilon=3.371, budget=7.5, delta=2e-5, size=240, others=0
    )
    asked = Privacy(mode="on", noise=2.19, rate=0.125, clip=0.3, slices=3, sums_noise=4.5, sums_clip=0.7)
    assert Certificate.of("north", spent, asked, steps=207) == NORTH
    carried_out = PrivacyPlan.of(asked, epsilon=7.5, delta=2e-5, size=240)
    assert Certificate.of("north", spent, carried_out, steps=207, sums=1) == dataclasses.replace(
        NORTH, sums=1, sums_noise=4.5, sums_clip=0.7
    )
    with pytest.raises(ConfigError, match="noise=null"):
        Certificate.of("north", spent, dataclasses.replace(asked, noise=None), steps=207)
    plan_says = (carried_out.unit, carried_out.adjacency, carried_out.sampling, carried_out.accountant)
    assert plan_says == (PRIVATE.unit, PRIVATE.adjacency, PRIVATE.sampling, PRIVATE.accountant)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
@pytest.mark.parametrize("false_alarms", [0.0, 0.05, 0.5])
def test_the_best_attack_is_that_on_the_worst_mechanism(epsilon: float, delta: float, false_alarms: float) -> None:
    """The (epsilon, delta) mechanism that dominates all others has four outcomes; the best test fills up the likeliest
    ratios first (Neyman and Pearson). No test on it does better than what is said, and one does as well."""
    high = (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    out = np.array([0.0, 1 - delta - high, high, delta])  # who took no part
    took = np.array([delta, high, 1 - delta - high, 0.0])
    found, left = 0.0, false_alarms
    for p_out, p_took in zip(out, took, strict=True):  # in order of p_took / p_out
        share = 1.0 if p_out <= left else left / p_out
        found, left = found + share * p_took, left - share * p_out
    assert best_attack(epsilon, delta, false_alarms) == pytest.approx(found, abs=1e-12)


def test_the_best_attack_at_one_is_one_in_seven() -> None:
    assert best_attack(1.0, 1e-5) == pytest.approx(0.05 * math.e + 1e-5)
    assert best_attack(0.0, 0.0) == 0.05


GUIDE = Path(__file__).resolve().parents[3] / "docs" / "privacy.md"
ROW = re.compile(r"^\| (\d) \| ([\d.]+) of 100 \| ([\d.]+) of 100 \|$", re.MULTILINE)


def test_the_odds_in_the_guide_are_those_that_follow() -> None:
    rows = [tuple(map(float, row)) for row in ROW.findall(GUIDE.read_text(encoding="utf-8"))]
    assert [row[0] for row in rows] == [1, 3, 8]
    for epsilon, alone, _ in rows:
        assert 0 <= alone - 100 * best_attack(epsilon, 1e-5) < 0.06


@pytest.mark.slow
def test_the_odds_of_the_guides_mechanism_are_those_of_its_whole_curve() -> None:
    """Every (epsilon, delta) that the accountant proves bounds the attack; the least of these bounds holds."""
    for target, _, known in (tuple(map(float, row)) for row in ROW.findall(GUIDE.read_text(encoding="utf-8"))):
        spent = {Query(noise=noise_for(target, 1e-5, rate=0.1, steps=200), rate=0.1): 200}
        deltas = (1e-5, 1e-3, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
        least = min(best_attack(epsilon_of(spent, delta), delta) for delta in deltas)
        assert 0 <= known - 100 * least < 0.1
