"""What of a face a mask leaves is seen where the reference head has it, and excludes."""

from dataclasses import replace

import numpy as np
import pytest
from support.cohort.heads import bare_mask, head

from client.ingest.image import atlas, face, quality, template
from client.ingest.image.quality import Limits

pytestmark = pytest.mark.slow  # left out of `make fast`


def test_the_reference_brain_shows_no_face_and_an_eye_is_seen() -> None:
    reference = atlas.load()
    mask, affine = reference.brain_DHW, reference.t1.affine
    assert not any(face.left_ml(mask, affine, np.eye(4)).values())
    x, y, z = (np.linalg.inv(affine) @ [*face.EYE_MM, 1])[:3].round().astype(int)
    grown = mask.copy()
    grown[z - 4 : z + 5, y - 4 : y + 5, x - 4 : x + 5] = True
    left = face.left_ml(grown, affine, np.eye(4))
    assert left["eyes"] > 4
    assert left["nose"] == left["ears"] == 0


def test_a_face_excludes_and_says_so() -> None:
    """The real figures of a mask that keeps the nose."""
    whole = head("T1", bare=False)
    mask = bare_mask(whole)
    fit = template.fit(whole, mask)
    clean = quality.of_brain(whole, mask, fit)
    assert quality.why_no_brain(clean, Limits()) is None
    left = replace(clean, face_ml={"eyes": 0.0, "nose": 3.2, "ears": 0.0})
    assert "3.2 ml lie where nose" in str(quality.why_no_brain(left, Limits()))
    assert quality.why_no_brain(left, Limits(max_face_ml=4.0)) is None
