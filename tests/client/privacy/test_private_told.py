"""What a private site tells besides its noised numbers: nothing that looks at its people."""

import json
import math
from pathlib import Path

from support.cohort.worlds import write_cohort
from support.privacy.privately import EVERYONE, PATTERNS, PROBE, Script, Spoilt, a_round, cohort_at, plan_of, pool_of
from torch import nn

from client.privacy.private import shares_of
from shared.base.records import Spent, Update
from shared.base.vocabulary import SHARED, target
from shared.data.cohort import Cohort
from shared.plan import sealed, wire


def test_what_leaves_besides_the_noised_weights_does_not_depend_on_the_data(
    cohort: Cohort, net: nn.Module, tmp_path: Path
) -> None:
    """Other people, of the same public patterns, one of whom breaks the network; all that was measured is handed over.

    Of each reply every word and every form is compared; the values of the noised weights alone may differ.
    """
    others = cohort_at(write_cohort(tmp_path / "west", "west", PATTERNS * 2, seed=3))
    shares = shares_of(PROBE, net, "fit", [tuple(p) for p in PATTERNS], 16, 16)
    spent = Spent(ledger="ab" * 16, sequence=2, head="cd" * 32, epsilon=1.0, budget=8.0, delta=1e-5, size=10, others=0)
    told, seen, sent = [], [], []
    for one, heads, method in (
        (cohort, (0, 1), PROBE),
        (others, range(14), PROBE),
        (others, (), PROBE),
        (cohort, EVERYONE, Spoilt(subject=6)),
    ):
        trained = a_round(method, net, pool_of(PROBE, one), Script(heads, heads), plan_of(), steps=2, shares=shares)
        measured = {"loss": 0.25, "samples": float(trained.samples), "seconds": trained.seconds, **trained.watch}
        reply = wire.pack_update(
            Update(
                site="north",
                run="r",
                phase="fit",
                round=0,
                schema="s",
                delta=trained.delta,
                counts=trained.counts,
                metrics=measured | {"feature_std": float(len(heads))},
                spent=spent,
            )
        )
        forms = {name: (tensor.dtype, tensor.shape) for name, tensor in trained.delta.items()}
        told.append((sealed.fields(reply), forms))
        seen.append((math.isnan(trained.loss), trained.watch["lost"]))
        sent.append(reply.array_records["delta"]["tensors"].data)
    assert told[0] == told[1] == told[2] == told[3]
    assert seen == [(True, 0.0)] * 3 + [(True, 2.0)], "what differs is known here, and stays"
    assert len(set(sent)) == 4
    fields, _ = told[0]
    assert json.loads(fields["update.metrics"]) == {"samples": 2.0 * 4}, "as the plan says"
    counts = json.loads(fields["update.counts"])
    assert (counts[SHARED], counts[target("FLAIR")]) == (8, round(8 * 5 / 7))
