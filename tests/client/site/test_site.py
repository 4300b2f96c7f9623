"""docs/site.md as a new site follows it: its own lines, in an empty folder, from a real PACS and back to it."""

import io
import json
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from support.cohort.heads import head, moved, random_pose
from support.dicom.dicoms import uid, write_series
from support.dicom.orthanc import Pacs
from support.dicom.validators import errors_of
from support.model.models import AMM_TINY, release, signed
from support.page.pages import Browser, entered, listening
from typer.testing import CliRunner

from client.cli.cli import app
from client.page.index import Index
from client.page.place import Place
from client.page.site import look_of, routes

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "site.md"
PAGES = 3  # lines of the guide that open pages, before the same is done line by line
PATIENTS = {"P-1": ("T1", "T2"), "P-2": ("T1", "FLAIR"), "P-3": ("T1",)}


def commands() -> list[str]:
    """What stands in the guide to be typed."""
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def type_in(line: str, **instead: str) -> str:
    """What `lacuna-site` prints; the guide's address and subject are only examples."""
    for word, value in instead.items():
        line = line.replace({"pacs": "https://pacs.example/dicom-web", "subject": "sub-xxxxxxxxxxxxxxxx"}[word], value)
    program, *words = shlex.split(line)
    assert program == "lacuna-site"
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{line}\n{done.stderr}\n{done.exception!r}"
    return done.stdout


def store_patients(pacs: Pacs, folder: Path) -> None:
    """One head with skull and skin, two that were stripped before; each series lies a little otherwise."""
    rng = np.random.default_rng(7)
    for name, modalities in PATIENTS.items():
        for number, modality in enumerate(modalities, start=1):
            image = head(modality, seed=number, bare=name != "P-1")
            if number > 1:
                image = moved(image, random_pose(rng, mm=4, degrees=4))
            data = np.clip(image.data_DHW[::2, ::-1, ::-1], 0, 4095).astype(np.uint16)
            write_series(
                folder / name / modality,
                modality,
                patient=name,
                study=name,
                number=number,
                data=data,
                spacing=(4.0, 2.0, 2.0),
            )
    pacs.store(folder)


def bundle_for(folder: Path, scratch: Path) -> None:
    """What the coordinator hands out; of a network that was never trained."""
    final = release(scratch / "final", "amm_diff", AMM_TINY)
    record = json.loads((final / "model.json").read_text())
    record["grid"] = {"spacing_mm": 3.0, "height": 64, "width": 64}
    (final / "model.json").write_text(json.dumps(record))
    bundle, key = signed(scratch / "signed", final)
    bundle.rename(folder / "bundle")
    key.rename(folder / "coordinator.pub")


def synthetic(pacs: Pacs) -> dict[str, list[bytes]]:
    """By series description."""
    found = {}
    for name in pacs.get("/series"):
        tags = pacs.get(f"/series/{name}")["MainDicomTags"]
        if "SYNTHETIC" in tags.get("SeriesDescription", ""):
            found[tags["SeriesDescription"]] = pacs.instances(SeriesInstanceUID=tags["SeriesInstanceUID"])
    return found


@pytest.mark.slow
def test_the_guide_leads_from_an_empty_folder_to_a_flair_in_the_pacs(
    pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, listing, reject, accept, synthesize, *_ = commands()[PAGES:]
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.chdir(site)
    store_patients(pacs, tmp_path / "scanner")
    bundle_for(site, tmp_path)
    (site / "studies.txt").write_text("".join(f"{uid(name, name)}\n" for name in PATIENTS))

    assert "3 subjects" in type_in(ingest, pacs=pacs.dicomweb)
    for name in ("quality.html", "exclusions.csv"):
        assert (site / "cohort" / name).stat().st_size > 0
    known = json.loads((site / "state" / "provenance.json").read_text())
    subject = next(one["subject"] for one in known if one["patient"] == "P-1")
    assert sorted(path.name for path in (site / "cohort" / subject / "anat").glob("*.nii.gz")) == [
        f"{subject}_T1w.nii.gz",
        f"{subject}_T2w.nii.gz",
    ]

    assert type_in(listing).count("in the cohort") == 3
    assert "rejected        moved during the scan" in type_in(reject, subject=subject)
    assert "accepted        looked again" in type_in(accept, subject=subject)

    said = type_in(synthesize, pacs=pacs.dicomweb, subject=subject)
    back = synthetic(pacs)
    label = "SYNTHETIC - not for primary diagnosis: FLAIR"
    assert sorted(back) == [label, f"{label} uncertainty"]
    assert f"{sum(map(len, back.values()))} images stored by {pacs.dicomweb}" in said
    source = dcmread(next((tmp_path / "scanner" / "P-1" / "T1").iterdir()))
    for number, raw in enumerate(raw for series in back.values() for raw in series):
        image = dcmread(io.BytesIO(raw))
        assert (image.PatientID, image.StudyInstanceUID) == ("P-1", source.StudyInstanceUID)
        assert image.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert image.SyntheticData == "YES"
        if number % 12 == 0:
            (tmp_path / "back.dcm").write_bytes(raw)
            assert errors_of(tmp_path / "back.dcm") == []

    type_in(synthesize, pacs=pacs.dicomweb, subject=subject)  # again: nothing is doubled
    assert {name: sorted(series) for name, series in synthetic(pacs).items()} == {
        name: sorted(series) for name, series in back.items()
    }
    assert "7; 5 of them are a modality" in type_in(f"{ingest} --review", pacs=pacs.dicomweb)  # no input again


@pytest.mark.slow
def test_the_same_by_the_page(pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.chdir(site)
    store_patients(pacs, tmp_path / "scanner")
    bundle_for(site, tmp_path)
    (site / "studies.txt").write_text(f"{uid('P-1', 'P-1')}\n")
    type_in(commands()[PAGES], pacs=pacs.dicomweb)
    (subject,) = (path.name for path in (site / "cohort").glob("sub-*"))

    place = Place(
        state=site / "state",
        cohorts=(site / "cohort",),
        bundles=(site / "bundle",),
        trust=site / "coordinator.pub",
        push=pacs.dicomweb,
    )
    look = look_of(place)
    with listening(routes(place, look, Index(place.cohorts, place.key)), look) as served:
        me = entered(served)
        found = re.search(rf'href="(/subjects/[0-9a-f]+)">{subject}<', me.http.get("/subjects").text)
        assert found is not None
        one = found[1]
        assert "signal over noise" in me.http.get(one).text
        started = me.post(f"{one}/fill", bundle="0", target="FLAIR", sampler="multistep", samples="2")
        assert "Made" in finished(me, started.headers["location"])
        assert "SYNTHETIC" in me.http.get(one).text

        unsure = me.post(f"{one}/send", target="FLAIR")  # nobody said that they looked
        assert unsure.status_code == 409
        assert not synthetic(pacs)
        assert pacs.dicomweb in me.http.get(f"{one}/send").text
        sent = me.post(f"{one}/send", target="FLAIR", sure="yes")
        assert "are stored by" in finished(me, sent.headers["location"])
    label = "SYNTHETIC - not for primary diagnosis: FLAIR"
    assert sorted(synthetic(pacs)) == [label, f"{label} uncertainty"]
    assert [entry["what"] for entry in place.decided.entries()] == ["fill", "send"]


def finished(me: Browser, path: str) -> str:
    """What a work's page says in the end."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        page = me.http.get(path).text
        if 'hx-trigger="every 1s"' not in page:
            return page
        time.sleep(0.5)
    raise AssertionError(f"{path}: not finished in time")
