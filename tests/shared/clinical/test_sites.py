"""A site trains with the encoder of the plan or not at all, and what it says of its own is no address."""

import logging
from pathlib import Path
from typing import Any

import pytest
from support.model.embeddings import WIDTH, EmbeddingsServer

from client.round import text
from client.round.text import check_text
from client.site.settings import load as load_settings
from client.site.site import Site, find_site
from shared.base.errors import ConfigError, PlanRefused
from shared.clinical import Chart, TextSettings, Unset, make_encoder
from shared.clinical.attach import attach, attach_own, planned_fingerprint, reads_text
from shared.clinical.probes import fingerprint
from shared.clinical.settings import from_environment
from shared.methods.aca_diff import AcaDiff
from shared.methods.amm_diff import AmmDiff
from shared.plan.config import load, same_run, with_changes


@pytest.fixture(autouse=True)
def _no_memory() -> None:
    text._open.cache_clear()


def site(state: Path, **own: object) -> Site:
    return find_site({"site": "north", "cohort": "/cohort", "state": str(state), **own})


def small(**options: Any) -> AcaDiff:
    return AcaDiff(size="tiny", depth=8, height=8, width=8, **options)


def own_method(print_: str = "") -> AcaDiff:
    return small(text="openai_compatible", text_width=WIDTH, text_fingerprint=print_)


def test_a_site_with_the_plans_encoder_takes_part_and_one_with_another_is_refused_by_both_names(tmp_path: Path) -> None:
    plain = small()
    planned = planned_fingerprint(plain)
    encoder = check_text(site(tmp_path), small(text_fingerprint=planned))
    assert encoder is not None
    assert encoder.id == make_encoder("builtin", 64).id
    other = fingerprint(make_encoder("label_embedding", 64))
    with pytest.raises(PlanRefused, match=r"north: its text encoder \(builtin v1 .*\) is not the plan's \(label_emb"):
        check_text(site(tmp_path), small(text_fingerprint=other))
    assert check_text(site(tmp_path), small(text="none")) is None
    assert not reads_text(AmmDiff(modalities=("T1", "T2"), size="tiny"))


def test_an_encoder_of_the_sites_own_is_asked_anew_each_round(server: EmbeddingsServer, tmp_path: Path) -> None:
    north = site(tmp_path, **{"text-url": server.url, "text-model": "tiny"})
    with pytest.raises(PlanRefused, match="the plan has no text_fingerprint"):
        check_text(north, own_method())
    settings = TextSettings(url=server.url, model="tiny")
    method = own_method(planned_fingerprint(own_method(), settings))
    net = own_method().build(0)
    with pytest.raises(ConfigError, match="no encoder is attached"):
        net.encoder.encode([], [], [])
    encoder = check_text(north, method)
    assert encoder is not None
    attach(net, encoder)
    assert net.encoder is encoder
    assert not [name for name in net.state_dict() if "encoder." in name and not name.startswith("autoencoders")]
    server.turn = 2.0
    with pytest.raises(PlanRefused, match="is not the plan's"):
        check_text(north, method)
    server.turn = 0.0
    assert check_text(north, method) is not None


def test_what_goes_wrong_at_a_site_stays_in_its_log(
    server: EmbeddingsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TextSettings(url=server.url, model="tiny")
    method = own_method(planned_fingerprint(own_method(), settings))
    lost = site(tmp_path, **{"text-url": "http://127.0.0.1:9/secret-path", "text-model": "tiny"})
    for wrong in (lost, site(tmp_path, **{"text-url": "https://8.8.8.8/secret-path", "text-model": "tiny"})):
        with caplog.at_level(logging.ERROR), pytest.raises(PlanRefused, match="the site's own log says why") as refused:
            check_text(wrong, method)
        assert "secret-path" not in str(refused.value)
        assert "8.8.8.8" not in str(refused.value)
    encoder = check_text(site(tmp_path, **{"text-url": server.url, "text-model": "tiny"}), method)
    assert encoder is not None
    server.close()
    with caplog.at_level(logging.ERROR), pytest.raises(PlanRefused, match="the site's own log says why") as refused:
        encoder.encode([Chart(mmse=8)], ["T1"], [("FDG",)])
    assert str(server.port) not in str(refused.value)
    assert "outside this site's network" in caplog.text
    assert "secret-path" not in caplog.text


def test_settings_come_from_the_node_then_the_sites_file_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACUNA_TEXT_MODEL", "from environment")
    monkeypatch.setenv("LACUNA_TEXT_TIMEOUT", "7")
    (tmp_path / "site.toml").write_text(
        '[site]\ndevice = "cpu"\n[policy]\nmin_subjects = 2\n'
        '[text]\nmodel = "from file"\nkey_file = "/keys/one"\nallowed-hosts = ["a.test", "b.test"]\n'
    )
    found = site(tmp_path, **{"text-url": "https://10.0.0.1/v1", "text-allow-phi-egress": "true"}).text
    assert found == TextSettings(
        url="https://10.0.0.1/v1",
        model="from file",
        timeout=7.0,
        key_file=Path("/keys/one"),
        allowed_hosts=("a.test", "b.test"),
        allow_phi_egress=True,
        state=tmp_path,
    )
    assert load_settings(tmp_path).device == "cpu"
    assert from_environment() == TextSettings(model="from environment", timeout=7.0)
    with pytest.raises(ConfigError, match=r"text.foldr: unknown key; must be one of folder, url"):
        site(tmp_path, **{"text-foldr": "x"})
    with pytest.raises(ConfigError, match=r"text.timeout='soon': must be a number of seconds"):
        site(tmp_path, **{"text-timeout": "soon"})
    with pytest.raises(ConfigError, match=r"text.allow-phi-egress='perhaps': must be true or false"):
        site(tmp_path, **{"text-allow-phi-egress": "perhaps"})
    (tmp_path / "site.toml").write_text("[text\n")
    with pytest.raises(ConfigError, match=r"site.toml"):
        site(tmp_path)


def test_the_coordinator_writes_its_encoders_fingerprint_into_the_plan(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["method=aca_diff", "size=tiny"]
    assert load(wanted).method.options["text_fingerprint"] == fingerprint(make_encoder("builtin", 64))
    assert not load([*wanted, "method.text=none"]).method.options["text_fingerprint"]
    own = [*wanted, "method.text=openai_compatible", f"method.text_width={WIDTH}"]
    with pytest.raises(ConfigError, match="off until the site names both"):
        load(own)
    monkeypatch.setenv("LACUNA_TEXT_URL", server.url)
    monkeypatch.setenv("LACUNA_TEXT_MODEL", "tiny")
    stored = load(own)
    assert str(server.port) not in stored.text()
    server.turn = 1e-6
    same_run(stored, load(own))
    server.turn = 1.0
    with pytest.raises(ConfigError, match="text_fingerprint"):
        same_run(stored, load(own))
    same_run(stored, with_changes(load(own), method=stored.method))


def test_outside_of_a_federation_the_environment_names_the_encoder(
    server: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TextSettings(url=server.url, model="tiny")
    method = own_method(planned_fingerprint(own_method(), settings))
    net = method.build(0)
    attach_own(net, method)
    assert isinstance(net.encoder, Unset)
    monkeypatch.setenv("LACUNA_TEXT_URL", server.url)
    monkeypatch.setenv("LACUNA_TEXT_MODEL", "tiny")
    attach_own(net, method)
    assert not isinstance(net.encoder, Unset)
    server.turn = 1.0
    with pytest.raises(ConfigError, match="is not the one of its training"):
        attach_own(method.build(0), method)
    with pytest.raises(ConfigError, match=r"text_width=24: .* gives tokens of 64"):
        attach(net, make_encoder("builtin", 64))
