"""Nobody is scored that a model was trained on: by the images that were read and, where names mean people, by name."""

import json
from collections.abc import Iterator, Mapping

from shared.base.errors import DataError
from shared.base.vocabulary import SiteName
from shared.data.cohort import Cohort


def check_apart(
    heldout: Mapping[SiteName, Cohort], trained: Mapping[SiteName, Cohort], *, strangers: bool = False
) -> None:
    """DataError where the two share a person; `strangers`: those of one name are different people."""
    names = set() if strangers else {s.name for cohort in trained.values() for s in cohort.subjects}
    files = {digest for cohort in trained.values() for digest in _files(cohort)}
    for site, cohort in heldout.items():
        again = sum(s.name in names for s in cohort.subjects)
        copied = sum(digest in files for digest in _files(cohort))
        if again or copied:
            other = "" if copied else "; if they are other people of the same names, say strangers=true"
            raise DataError(
                f"held-out cohort {site}: {again} subjects by name and {copied} image files are among those that "
                f"the models were trained on; must be apart{other}"
            )


def tested(cohort: Cohort) -> Cohort | None:
    """Its subjects of split test, none of whom is trained on under another name; None where it has none."""
    found, others = cohort.of("test"), cohort.of("train", "val")
    if not found.subjects:
        return None
    check_apart({f"{cohort.folder.name}, split test": found}, {"": others}, strangers=True)
    return found


def _files(cohort: Cohort) -> Iterator[str]:
    """Images, not masks: those of two people can both be empty."""
    for subject in cohort.subjects:
        meta = json.loads((cohort.folder / subject.name / "meta.json").read_text(encoding="utf-8"))
        yield from (digest for name, digest in meta["read"].items() if not name.endswith("_mask.nii.gz"))
