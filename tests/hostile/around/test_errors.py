"""What an error at a site tells the coordinator: never a path, never a subject, whatever went wrong and where."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_to_proto

from client import app
from client.site.ledger import LEDGER
from client.site.told import told
from server.flower import act_as_server, give_id
from shared.base.errors import BudgetSpent, ConfigError, DataError, LacunaError, PlanRefused, PlanWaits, RunFailed
from shared.plan import wire
from shared.trust.keys import new_site_key
from shared.trust.warrant import OWN_KEY

SECRET = "/srv/klinik/mueller/sub-northsecret000/anat/T1.nii.gz"
WORDS = ("klinik", "mueller", "northsecret", "T1.nii", "secretcohort")
FAULTS: dict[str, Exception] = {
    "a damaged file": DataError(f"{SECRET}: can't be read"),
    "a cohort by its name": DataError("cohort secretcohort: not prepared for this grid"),
    "a setting": ConfigError(f"{SECRET}: mode 0644 lets others at it"),
    "a subject in a setting": ConfigError("subject sub-northsecret000: unknown"),
    "a windows path": ConfigError("state=D:\\klinik\\mueller: missing"),
    "a training that failed": RunFailed(f"checkpoint {SECRET}: damaged"),
    "a budget": BudgetSpent(f"{SECRET}: no privacy ledger"),
    "a refusal": PlanRefused(f"north: {SECRET}"),
    "a plan that waits": PlanWaits(f"north: {SECRET}"),
    "another error of ours": LacunaError(SECRET),
    "an error of the disk": OSError(28, "No space left on device", SECRET),
    "a key": KeyError("sub-northsecret000"),
}


@pytest.fixture
def site(tmp_path: Path) -> SimpleNamespace:
    """A site whose folders bear the words that must not leave, and its Flower context."""
    state = tmp_path / "klinik" / "mueller"
    (state / OWN_KEY).parent.mkdir(parents=True)
    (state / OWN_KEY).touch(mode=0o600)
    (state / OWN_KEY).write_bytes(new_site_key())
    own: dict[str, Any] = {"site": "north", "cohort": str(tmp_path / "secretcohort"), "state": str(state)}
    context = Context(run_id=1, node_id=1, node_config=own, state=RecordDict(), run_config={})
    return SimpleNamespace(state=state, context=context)


def asked() -> Message:
    act_as_server(1)
    message = Message(RecordDict(), 1, "train")
    give_id(message)
    return message


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_in_local_work_leaves_no_path_and_no_subject(
    site: SimpleNamespace, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> RecordDict:
        raise FAULTS[fault]

    monkeypatch.setattr(app, "_reader", lambda *_: None)
    reply = app._answer(asked(), site.context, fail)
    sent = message_to_proto(reply).SerializeToString()
    assert [word for word in WORDS if word.encode() in sent] == []
    assert "see its log" in str(wire.refusal_in(reply.content))
    assert any(word in caplog.text for word in WORDS)  # where it can be read


@pytest.mark.parametrize("broken", ["the ledger", "the key", "the disk", "the settings"])
def test_an_error_beside_the_work_leaves_no_path_either(
    site: SimpleNamespace, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower sends the text of what a ClientApp raises."""
    if broken == "the ledger":
        (site.state / LEDGER).write_text("nothing that a ledger holds\n")
    elif broken == "the key":
        (site.state / OWN_KEY).unlink()
    elif broken == "the disk":
        (site.state / LEDGER).mkdir()
    else:
        del site.context.node_config["site"]
        monkeypatch.setenv("LACUNA_SITES", str(site.state / "sites.json"))
        site.context.node_config["partition-id"] = 0
    with pytest.raises(RunFailed) as left:
        app.train(asked(), site.context)
    assert [word for word in WORDS if word in str(left.value)] == []
    assert left.value.__suppress_context__


@pytest.mark.parametrize(
    "error",
    [
        PlanRefused("north: plan.method=probe: this site's policy allows only methods: amm_diff"),
        PlanWaits("north: plan 0123456789ab waits for local approval"),
        BudgetSpent(
            "epsilon 7.9 of the budget of 8 at delta 1e-05 is spent (`lacuna-site budget STATE --set-epsilon`)"
        ),
        RunFailed("step 3: the loss is nan; a lower lr may help"),
    ],
)
def test_words_that_were_meant_leave_as_they_are(error: LacunaError) -> None:
    assert told("north", error) is error
