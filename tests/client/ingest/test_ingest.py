"""The whole way but the preparation itself: visits, choice, a person's review, again and again without change."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from support.cohort.validator import errors_in
from support.dicom.dicoms import write_series, write_study

from client.ingest.arrive.source import Folder
from client.ingest.cohort.pipeline import ingest
from client.ingest.recognise.visits import Record
from shared.base.errors import ConfigError, DataError
from shared.data.modalities import bids_path
from shared.data.volumes import read, write

pytestmark = pytest.mark.slow  # left out of `make fast`


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_becomes_one_job_under_a_pseudonym(site: Any) -> None:
    write_study(site.source, "PAT-77", ["T1", "T2", "FLAIR", "CT", "FDG"])
    done = site.ingest()
    (job,) = site.jobs
    assert list(job.inputs) == ["T1", "T2", "FLAIR", "CT", "FDG"]
    assert job.session is None
    assert job.clinical == {"age": 61.0, "sex": "F"}
    assert (done.visits, done.mapped, done.series) == (1, 5, 5)
    everything = b"".join([*tree(site.cohort).values(), *(name.encode() for name in tree(site.cohort))])
    for secret in (b"PAT-77", b"Made", b"20240102", b"1963"):
        assert secret not in everything
    (entry, *_) = json.loads((site.state / "provenance.json").read_text())
    assert (entry["patient"], entry["subject"]) == ("PAT-77", job.subject)
    assert (site.state).stat().st_mode & 0o077 == 0


def test_again_changes_nothing(site: Any) -> None:
    write_study(site.source, "A", ["T1", "T2"])
    write_study(site.source / "more", "B", ["T1"])
    site.ingest()
    first, state, jobs = tree(site.cohort), tree(site.state), site.jobs
    site.ingest()
    assert (tree(site.cohort), tree(site.state), site.jobs) == (first, state, jobs)


def test_an_interrupted_ingest_goes_on(site: Any) -> None:
    write_study(site.source, "A", ["T1", "T2"])
    write_study(site.source / "b", "B", ["T1"])

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    site.refuse = stop
    with pytest.raises(KeyboardInterrupt):
        site.ingest()
    converted = {p: p.stat().st_mtime_ns for p in site.state.rglob("image.nii")}
    assert len(converted) == 3
    site.refuse = lambda job: None
    assert site.ingest().visits == 2
    assert {p: p.stat().st_mtime_ns for p in site.state.rglob("image.nii")} == converted
    assert not list(site.leftovers())


def test_visits_are_sessions_and_keep_their_numbers(site: Any) -> None:
    write_study(site.source / "2", "A", ["T1"], study="second", day="20240601")
    site.ingest()
    assert [job.session for job in site.jobs] == [None]
    write_study(site.source / "1", "A", ["T1"], study="first", day="20230101")
    write_study(site.source / "3", "A", ["T2"], study="other scanner", day="20240601")
    site.ingest()
    assert [(job.session, list(job.inputs)) for job in site.jobs] == [("ses-1", ["T1", "T2"]), ("ses-2", ["T1"])]
    (subject,) = site.cohort.glob("sub-*")
    assert sorted(p.name for p in subject.iterdir()) == ["ses-1", "ses-2"]


def test_studies_of_some_days_may_be_one_visit(site: Any) -> None:
    write_study(site.source / "mr", "A", ["T1"], study="mr", day="20240601")
    write_study(site.source / "pet", "A", ["FDG"], study="pet", day="20240609")
    site.ingest(visit_days=14)
    assert [(job.session, list(job.inputs)) for job in site.jobs] == [(None, ["T1", "FDG"])]


def test_the_finer_of_two_is_taken_and_the_other_said(site: Any) -> None:
    write_series(site.source / "coarse", "T2", number=1)
    write_series(site.source / "fine", "T2", number=2, spacing=(8, 4, 4))
    site.ingest()
    assert [a.why for a in site.asides] == ["another T2 series of this visit was used"]
    (entry,) = json.loads((site.state / "provenance.json").read_text())
    assert "/fine/" in entry["files"][0]


def test_where_the_best_can_not_be_converted_the_next_is_taken(site: Any) -> None:
    write_series(site.source / "good", "CT", number=1)
    write_series(site.source / "fine", "CT", number=2, spacing=(8, 4, 4), tags={"RescaleIntercept": 0})
    site.ingest()
    assert "/good/" in json.loads((site.state / "provenance.json").read_text())[0]["files"][0]
    assert "not in Hounsfield units" in site.asides[0].why


def test_a_review_stops_and_an_edit_counts(site: Any) -> None:
    write_series(site.source / "a", "T1", number=1)
    write_series(site.source / "b", "T2", number=2, tags={"EchoTime": 15})  # proton density, by the rules
    write_series(site.source / "c", "FLAIR", number=3)
    done = site.ingest(review=True)
    assert done.visits is None
    assert not site.jobs
    path = site.state / "ingest" / "series.csv"
    table = rows(path)
    assert [row["modality"] for row in table] == ["T1", "", "FLAIR"]
    assert all(row["why"] for row in table)
    table[1]["modality"], table[2]["modality"] = "t2w", ""
    text = ";".join(table[0]) + "\r\n" + "".join(";".join(row.values()).replace(",", " ") + "\r\n" for row in table)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # as a spreadsheet of another country saves it
    for _ in range(2):  # the edit stays
        site.ingest()
        assert list(site.jobs[0].inputs) == ["T1", "T2"]
        assert [a.why for a in site.asides] == ["by a person's word in series.csv"]


def test_an_edit_that_is_no_modality_names_its_line(site: Any) -> None:
    write_series(site.source, "T1")
    site.ingest(review=True)
    path = site.state / "ingest" / "series.csv"
    path.write_text(path.read_text().replace("T1,T1,", "T9,T1,"))
    with pytest.raises(ConfigError, match=r"series.csv line 2: modality='T9'"):
        site.ingest()


def test_aliases_are_the_sites_own_names(site: Any) -> None:
    write_series(site.source / "a", "T2", number=1, tags={"EchoTime": 15, "SeriesDescription": "KOPF_PD_sonder"})
    write_series(site.source / "b", "T1", number=2, tags={"SeriesDescription": "T1_nicht_nehmen"})
    write_series(site.source / "c", "FLAIR", number=3)
    (site.state / "ingest").mkdir(parents=True)
    aliases = "description,modality\nkopf_pd*,T2\n*nicht_nehmen*,-\n"
    (site.state / "ingest" / "aliases.csv").write_text(aliases)
    site.ingest()
    assert list(site.jobs[0].inputs) == ["T2", "FLAIR"]
    assert [a.why for a in site.asides] == ["by the site's alias table"]
    assert (site.state / "ingest" / "aliases.csv").read_text() == aliases


def test_no_word_makes_a_volume_of_a_broken_series_or_takes_a_synthetic_one(site: Any) -> None:
    write_series(site.source / "a", "T1", number=1, skip=(4, 5), tags={"SeriesDescription": "take me"})
    write_series(site.source / "b", "T2", number=2, tags={"SeriesDescription": "SYNTHETIC take me"})
    (site.state / "ingest").mkdir(parents=True)
    (site.state / "ingest" / "aliases.csv").write_text("description,modality\n*take me*,T2\n")
    site.ingest()
    assert not site.jobs
    assert sorted(a.why[:20] for a in site.asides) == ["a synthetic image: n", "about 2 slices are m"]


def test_a_description_is_no_formula_in_a_spreadsheet(site: Any) -> None:
    write_series(site.source, "T1", tags={"SeriesDescription": "=HYPERLINK(1)"})
    site.ingest(review=True)
    assert rows(site.state / "ingest" / "series.csv")[0]["description"] == "'=HYPERLINK(1)"


def test_text_in_the_voxels_waits_for_a_person(site: Any) -> None:
    def written(_: int, dataset: Dataset) -> None:
        dataset.ConversionType = "WSD"

    write_series(site.source, "T1", change=written)
    site.ingest()
    assert not site.jobs
    assert "text may be written" in site.asides[0].why
    path = site.state / "ingest" / "series.csv"
    path.write_text(path.read_text().replace("\n,,", "\nT1,,", 1))
    site.ingest()
    assert [list(job.inputs) for job in site.jobs] == [["T1"]]


def test_an_excluded_subject_stops_nobody_and_leaves_no_folder(site: Any) -> None:
    write_study(site.source / "a", "A", ["T1"])
    write_study(site.source / "b", "B", ["T1"])
    site.ingest()
    assert len(list(site.cohort.glob("sub-*"))) == 2
    bad = site.jobs[0].subject
    site.refuse = lambda job: "not a brain" if job.subject == bad else None
    done = site.ingest()
    assert dict(done.excluded) == {bad: "not a brain"}
    assert [p.name for p in site.cohort.glob("sub-*")] == [site.jobs[1].subject]
    assert (bad, "not a brain") in [(r["subject"], r["why"]) for r in rows(site.cohort / "exclusions.csv")]


def test_a_second_source_adds_to_the_cohort(site: Any) -> None:
    write_study(site.source, "A", ["T1"])
    site.ingest()
    write_series(site.root / "other", "T2", patient="A", number=9)
    write_study(site.root / "other" / "b", "B", ["T1"])
    site.ingest(site.root / "other")
    assert sorted(list(job.inputs) for job in site.jobs) == [["T1"], ["T1", "T2"]]


def test_only_the_modalities_asked_for(site: Any) -> None:
    write_study(site.source, "A", ["T1", "T2"])
    site.ingest(modalities=["t2w"])
    assert list(site.jobs[0].inputs) == ["T2"]
    assert [a.why for a in site.asides] == ["T1 was not asked for"]


def test_clinical_columns_come_from_the_sites_table(site: Any) -> None:
    write_study(site.source, "A", ["T1"])
    site.state.mkdir()
    (site.state / "participants.tsv").write_text("participant_id\tdiagnosis\tmmse\nA\tMCI\t24\n")
    site.ingest()
    assert site.jobs[0].clinical == {"age": 61.0, "sex": "F", "diagnosis": "MCI", "mmse": 24.0}
    assert "MCI" in (site.cohort / "participants.tsv").read_text()


def test_a_bids_folder_goes_straight_to_preparation(site: Any) -> None:
    from support.cohort.cohorts import cohort_of

    cohort_of(site.source, [["T1", "CT"], ["T1"]])
    (site.source / "participants.tsv").write_text("participant_id\tage\nsub-01\t70\n")
    (site.source / "sub-02" / "anat" / "sub-02_T2w.nii.gz").write_bytes(b"no")
    done = site.ingest()
    assert done.visits == 2
    jobs = sorted((list(job.inputs), dict(job.clinical)) for job in site.jobs)
    assert jobs == [(["T1"], {}), (["T1", "CT"], {"age": 70.0})]
    assert [a.why for a in site.asides if "T2w" in a.where]
    assert {job.subject for job in site.jobs}.isdisjoint({"sub-01", "sub-02"})


def test_dates_of_a_bids_folder_stay_out_of_the_cohort(site: Any) -> None:
    """A session's label may be one, and what somebody typed for an age."""
    from support.cohort.cohorts import add_subject

    for session, modalities in (("20240102", ["T1", "T2"]), ("20250304", ["T1"])):
        add_subject(site.source / "made", "sub-01", modalities)
        for path in (site.source / "made").rglob("*.nii.gz"):
            name = path.name.replace("sub-01_", f"sub-01_ses-{session}_")
            target = site.source / "sub-01" / f"ses-{session}" / "anat" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    shutil.rmtree(site.source / "made")
    (site.source / "participants.tsv").write_text("participant_id\tage\nsub-01\t1950-05-06\n")
    site.ingest()
    assert [list(job.inputs) for job in site.jobs] == [["T1", "T2"]]
    everything = b"".join([*tree(site.cohort).values(), *(name.encode() for name in tree(site.cohort))])
    assert b"another session was used" in everything
    for secret in (b"20240102", b"20250304", b"1950"):
        assert secret not in everything


def test_subjects_of_two_bids_folders_are_never_mixed(site: Any) -> None:
    """Each folder begins at sub-01, and its name may be `bids` too: nobody knows whether that is one person."""
    from support.cohort.cohorts import add_subject, cohort_of

    one, two = site.root / "north" / "bids", site.root / "south" / "bids"
    cohort_of(one, [["T1"]])
    cohort_of(two, [["T2"], ["T1"]])
    site.ingest(one)
    site.ingest(two)
    assert sorted(list(job.inputs) for job in site.jobs) == [["T1"], ["T1"]]
    assert [a.why[:50] for a in site.asides] == ["another BIDS folder had a subject of this name: gi"]
    add_subject(one, "sub-01", ["FLAIR"])
    site.ingest(one)  # the same folder again: more of the same person
    assert sorted(list(job.inputs) for job in site.jobs) == [["T1"], ["T1", "FLAIR"]]


def test_a_damaged_record_is_one_line_and_is_not_replaced(site: Any) -> None:
    write_study(site.source, "A", ["T1"])
    site.ingest()
    record = site.state / "ingest" / "acquired.json"
    kept = Record.open(record.parent)
    kept.write(record.parent)
    assert Record.open(record.parent) == kept
    for content in ("{", "[7]", '{"visits": 7}', '{"taken": [{"rank": [0.0]}]}'):
        record.write_text(content)
        with pytest.raises(DataError, match=r"damaged .*delete it and ingest the sources again"):
            site.ingest()
        assert record.read_text() == content


def test_disks_lie_apart_and_belong_to_one_key(site: Any) -> None:
    write_study(site.source, "A", ["T1"])
    inside = Folder(path=site.source)
    with pytest.raises(ConfigError, match="must not lie in"):
        ingest(inside, site.source / "out", site.state, prepare=lambda *a: [], preparation="")
    site.ingest()
    with pytest.raises(ConfigError, match="another identity"):
        ingest(inside, site.cohort, site.root / "other-state", prepare=lambda *a: [], preparation="")
    (site.root / "mine").mkdir()
    (site.root / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="new or empty folder"):
        ingest(inside, site.root / "mine", site.state, prepare=lambda *a: [], preparation="")


def test_the_validator_of_bids_finds_no_error_in_a_cohort(site: Any) -> None:
    """Its folders as the preparation writes them, with CT and PET, sessions and our own files beside them."""
    write_study(site.source / "a", "A", ["T1", "CT", "FDG"])
    write_study(site.source / "b", "B", ["T1"], study="1")
    write_study(site.source / "c", "B", ["T1CE"], study="2", day="20240707")
    site.ingest()
    (site.cohort / "quality").mkdir()
    (site.cohort / "quality" / "sub-1.png").write_bytes(b"picture")
    for job in site.jobs:
        for modality, nifti in job.inputs.items():
            inside = Path(bids_path(job.subject, modality))
            name = inside.name if job.session is None else inside.name.replace("_", f"_{job.session}_", 1)
            target = site.cohort / job.subject / (job.session or "") / inside.parent.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            volume = read(nifti)
            write(target, volume.data_DHW, volume.affine)
            target.with_name(name.replace(".nii.gz", ".json")).write_text(json.dumps(job.sidecars[modality]))
    assert errors_in(site.cohort) == []
