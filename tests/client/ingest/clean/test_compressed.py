"""Series as an archive compresses them: the same voxels come out, and writing in them is still seen."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from support.dicom.dicoms import write_series

from client.ingest.arrive.collect import collect
from client.ingest.image.convert import convert
from client.ingest.recognise.series import Series, group
from shared.data.volumes import read

TOOLS = {  # by dcmtk; pydicom reads the last one alone without further libraries
    "JPEG lossless, first order": ("dcmcjpeg", "+e1"),
    "JPEG lossless": ("dcmcjpeg", "+el"),
    "JPEG-LS": ("dcmcjpls",),
    "RLE": ("dcmcrle",),
}


def only(folder: Path) -> Series:
    (found,) = group(collect(folder)[0])[0]
    assert not found.fault
    return found


def compress(folder: Path, into: Path, how: str) -> Path:
    command = TOOLS[how]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is absent: apt install dcmtk")
    into.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        subprocess.run([*command, str(path), str(into / path.name)], check=True, capture_output=True)
    return into


@pytest.mark.parametrize("how", TOOLS)
def test_a_compressed_series_has_the_voxels_of_the_plain_one(how: str, tmp_path: Path) -> None:
    write_series(tmp_path / "plain", "T1")
    plain = read(convert(only(tmp_path / "plain"), "T1", tmp_path / "out").nifti)
    compressed = only(compress(tmp_path / "plain", tmp_path / "compressed", how))
    assert np.array_equal(read(convert(compressed, "T1", tmp_path / "again").nifti).data_DHW, plain.data_DHW)


@pytest.mark.parametrize("how", TOOLS)
def test_a_name_in_compressed_voxels_waits_for_a_person(how: str, site: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(200, 900, (16, 128, 128)).astype(np.uint16)
    for number, words in enumerate(("", "SMITH JOHN 1956"), start=1):
        picture = Image.new("L", (128, 128))
        ImageDraw.Draw(picture).text((6, 90), words, fill=255, font=ImageFont.load_default(11))
        shown = np.where(np.asarray(picture) > 127, np.uint16(4000), data)
        write_series(tmp_path / "plain", "T1", number=number, study=f"{number}", data=shown, spacing=(8, 1.5, 1.5))
        compress(tmp_path / "plain", site.source / str(number), how)
        shutil.rmtree(tmp_path / "plain")
    site.ingest()
    assert [list(job.inputs) for job in site.jobs] == [["T1"]]
    assert [aside.why.split(":")[0] for aside in site.asides] == ["text may be written into its voxels"]
    assert not list(site.leftovers())
