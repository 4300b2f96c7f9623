"""One table of names: every usual spelling is known, and what is not a modality is not taken for one."""

from pathlib import Path
from typing import cast

import pytest

from client.ingest.image.preparation import Preparation
from server.federation.provision import intensities
from shared.base.errors import ConfigError, DataError
from shared.data.cohort import Cohort, cache_folder, prepare
from shared.data.intensities import RULES, rules_version
from shared.data.modalities import (
    MODALITIES,
    Form,
    Percentiles,
    Window,
    bids_path,
    entity,
    in_order,
    is_lesion,
    lesion_path,
    modality_of,
    parse,
)
from shared.data.volumes import Grid
from shared.plan.settings import Choice, RunSettings


@pytest.mark.parametrize("modality", MODALITIES)
def test_each_modality_knows_itself_its_aliases_and_its_own_path(modality: str) -> None:
    assert parse(modality) == parse(modality.lower()) == modality
    assert all(parse(alias) == modality for alias in MODALITIES[modality].aliases)
    assert modality_of(bids_path("sub-01", modality)) == modality
    assert bids_path("01", modality) == bids_path("sub-01", modality)


def test_a_row_says_all_that_a_modality_needs() -> None:
    ranks = [form.reference for form in MODALITIES.values()]
    assert len(set(ranks)) == len(ranks), "no two of a subject's are the reference"
    for form in MODALITIES.values():
        assert (form.tracer is not None) == (form.kind == "pet")
        assert isinstance(form.values, Window) == (form.kind != "mr")


# --- a tenth row ----------------------------------------------------------------------------------------------------

PD = Form(kind="mr", folder="anat", ending="PDw", aliases=("pd",), values=Percentiles(low=1, high=99), reference=10)


def agreed(folder: Path) -> dict[str, object]:
    """Everything that must be equal before numbers or images are put together."""
    plan = RunSettings(
        method=Choice(name="amm_diff", options={"modalities": ["T1", "T2"], "size": "tiny"}),
        training={},
        grid=Grid(height=16, width=16),
        seed=0,
        keep_local=(),
        min_cell=5,
        min_holders=2,
    )
    cohort = folder / "sites" / "north"
    return {
        "plan": plan.schema,
        "kit": intensities(["T1", "T2"]),
        "bundle": rules_version(["T1", "T2"]),
        "cohort": Cohort.open(cache_folder(cohort, plan.grid)).digest,
        "cache": prepare(cohort, plan.grid, workers=0).renewed,
        "images": Preparation().digest,
    }


def test_a_modality_more_changes_no_digest_of_what_does_not_use_it(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = agreed(world)
    assert before["cache"] == 0
    monkeypatch.setitem(cast(dict[str, Form], MODALITIES), "PD", PD)
    monkeypatch.setitem(cast(dict[str, Percentiles], RULES), "PD", PD.values)
    assert agreed(world) == before
    assert rules_version(["T1", "PD"]) != rules_version(["T1"])


def test_another_rule_of_one_that_is_used_changes_them(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rules_version(["T1", "T2"]), rules_version(["T2", "FLAIR"]), intensities(["T1", "T2"])
    monkeypatch.setitem(cast(dict[str, Percentiles], RULES), "T1", Percentiles(low=1, high=99))
    assert rules_version(["T1", "T2"]) != before[0]
    assert rules_version(["T2", "FLAIR"]) == before[1]
    assert intensities(["T1", "T2"]) != before[2]
    with pytest.raises(DataError, match="prepared by another version"):
        Cohort.open(cache_folder(world / "sites" / "north", Grid(height=16, width=16)))


def test_no_spelling_means_two_modalities() -> None:
    aliases = [alias for form in MODALITIES.values() for alias in form.aliases]
    assert len(aliases) == len(set(aliases))
    assert not set(aliases) & {name.lower() for name in MODALITIES}


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("T1-weighted", "T1"),
        ("T1+Gd", "T1CE"),
        ("t1_ce", "T1CE"),
        ("T2*", "T2S"),
        ("t2-FLAIR", "FLAIR"),
        ("MRA", "TOF"),
        ("[18F] FDG", "FDG"),
        ("Florbetapir", "AV45"),
    ],
)
def test_usual_spellings(name: str, modality: str) -> None:
    assert parse(name) == modality


def test_an_unknown_name_is_answered_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"modality='DWI'.*T1, T1CE, T2, FLAIR, T2S, CT, FDG, AV45, TOF"):
        parse("DWI")


@pytest.mark.parametrize(
    ("file", "modality"),
    [
        ("sub-1/ses-02/anat/sub-1_ses-02_acq-3d_run-1_T1w.nii.gz", "T1"),
        ("sub-1_ce-GD_run-2_T1w.nii", "T1CE"),
        ("sub-1_acq-postcontrast_T1w.nii.gz", "T1CE"),
        ("sub-1_t1c.nii.gz", "T1CE"),
        ("sub-1_rec-norm_T2w.nii.gz", "T2"),
        ("sub-1_t2f.nii.gz", "FLAIR"),
        ("sub-1_part-mag_T2starw.nii.gz", "T2S"),
        ("sub-1_part-phase_T2starw.nii.gz", None),
        ("sub-1_angio.nii.gz", "TOF"),
        ("sub-1_acq-pc_angio.nii.gz", None),
        ("sub-1_trc-18FFDG_rec-acdyn_pet.nii.gz", "FDG"),
        ("sub-1_trc-PIB_pet.nii.gz", None),
        ("sub-1_pet.nii.gz", None),
        ("sub-1_label-lesion_mask.nii.gz", None),
        ("sub-1_label-GM_T1w.nii.gz", None),
        ("sub-1_dwi.nii.gz", None),
        ("sub-1_T1w.json", None),
        ("sub-1_T1w.mgz", None),
    ],
)
def test_files_are_known_by_their_bids_names(file: str, modality: str | None) -> None:
    assert modality_of(file) == modality


def test_lesion_maps_are_known_by_their_names() -> None:
    assert is_lesion(lesion_path("01"))
    assert is_lesion(lesion_path("01", tumour=True))
    assert not is_lesion("sub-01_label-brain_mask.nii.gz")
    assert not is_lesion("sub-01_label-lesion_mask.json")


def test_entities_and_order() -> None:
    assert entity("sub-1/ses-02/anat/sub-1_ses-02_T1w.nii.gz", "ses") == "02"
    assert entity("sub-1_T1w.nii.gz", "ses") == ""
    assert in_order(["TOF", "T1", "TOF", "FLAIR"]) == ("T1", "FLAIR", "TOF")
