"""quality.html: every subject of a cohort on one page that loads nothing, sortable, with pictures, for a person.

The page shows brains: it is patient data and stays at the site. Text is escaped; the one script sorts the table, and
the page's own policy lets no other run.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from client.ingest.image.resample import binned, box_of, cut, grid_with_spacing, resample
from shared.base import pictures
from shared.data.modalities import in_order
from shared.data.volumes import Array, Volume

if TYPE_CHECKING:
    from client.ingest.cohort.outcome import Outcome
    from client.ingest.image.preparation import Ready

PICTURE_MM = 1.5
EDGE_SHARE = 0.07  # of the brain's voxels: the strongest edges of the reference
COLUMNS = (
    "subject",
    "state",
    "why, and what to look at",
    "modalities",
    "brain ml",
    "fits",
    "tissue",
    "least registration",
    "least coverage",
    "least SNR",
    "ghost",
    "voxel mm",
)
SCRIPT = """
for (const [column, head] of document.querySelectorAll('thead th').entries()) head.onclick = () => {
  const down = head.dataset.down !== '1', body = document.querySelector('tbody')
  for (const other of document.querySelectorAll('thead th')) delete other.dataset.down
  head.dataset.down = down ? '1' : '0'
  const value = row => row.cells[column].dataset.v
  const compare = (a, b) => a === b ? 0 : a === '' ? 1 : b === '' ? -1 :
    (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b) * (down ? 1 : -1)
  for (const row of [...body.rows].sort((a, b) => compare(value(a), value(b)))) body.append(row)
}
"""
STYLE = """
:root { --paper: #fdfcf9; --ink: #22262b; --soft: #66707a; --rule: #e3e0d8; --bad: #b23a48; --ok: #3f7f5f }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e6e3dc; --soft: #98a1aa; --rule: #33373d; --bad: #e2717e; --ok: #6fbf95 }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { padding: 32px 24px 80px }
h1 { font: 600 30px/1.2 "Iowan Old Style", Palatino, Georgia, serif; margin: 0 0 8px }
p { margin: 6px 0; max-width: 80ch }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; margin-top: 18px }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top }
thead th { color: var(--soft); font-weight: 500; cursor: pointer; position: sticky; top: 0; background: var(--paper) }
th[data-down="1"]::after { content: " \\2193" }
th[data-down="0"]::after { content: " \\2191" }
td.text { max-width: 44ch; overflow-wrap: anywhere }
.excluded { color: var(--bad) } .kept { color: var(--ok) }
img { display: block; max-width: 440px; border-radius: 6px }
code { font: 12.5px ui-monospace, monospace }
"""


def draw(ready: "Ready", path: Path) -> None:
    """Three planes of each modality; on all but the reference, the reference's edges."""
    if not ready.volumes or not ready.brain_DHW.any():
        path.unlink(missing_ok=True)
        return
    around = box_of(ready.brain_DHW)
    shown = binned(cut(_volume(ready.brain_DHW, ready), around), PICTURE_MM)
    shape, affine = grid_with_spacing(shown, PICTURE_MM)
    brain = resample(shown, shape, affine, np.eye(4), sharp=False) >= 0.5
    if not brain.any():
        path.unlink(missing_ok=True)
        return
    box = box_of(brain)
    images = {}
    for modality, data in ready.volumes.items():
        small = binned(cut(_volume(data, ready), around), PICTURE_MM)
        there = resample(small, shape, affine, np.eye(4), sharp=False)
        low, high = np.percentile(there[brain], (1, 99.5))
        images[modality] = np.where(brain, np.clip((there - low) / max(high - low, 1e-6), 0, 1), 0)[box]
    reference = ready.quality.reference
    edges = _edges(images[reference], brain[box]) if reference in images else None
    middle = [n // 2 for n in next(iter(images.values())).shape]
    names = in_order(images)
    rows = [
        [
            _with(p, e)
            for p, e in zip(
                pictures.three_planes(images[m], middle),
                pictures.three_planes(edges, middle) if edges is not None and m != reference else [None] * 3,
                strict=True,
            )
        ]
        for m in names
    ]
    pictures.save_png(pictures.mosaic(rows, names, ("axial", "coronal", "sagittal"), cell=120), path)


def _volume(data_DHW: NDArray[Any], ready: "Ready") -> Volume:
    return Volume(data_DHW=data_DHW.astype(np.float32, copy=False), affine=ready.affine)


def render(cohort: Path, outcomes: "Sequence[Outcome]", digest: str) -> str:
    kept = sum(outcome.excluded is None for outcome in outcomes)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_sha(SCRIPT)}'"
    body = "".join(_row(cohort, outcome) for outcome in outcomes)
    heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in (*COLUMNS, "pictures"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>Quality of a cohort</title><style>{STYLE}</style></head><body><main>'
        f"<h1>Quality of a cohort</h1><p>{kept} of {len(outcomes)} visits are in the cohort. This page shows patients' "
        "brains: it stays at the site. A click on a column's name sorts. The red lines on a picture are the edges of "
        "the reference modality: where they do not follow the picture, the registration is wrong.</p>"
        "<p>To leave a subject out, or to take one in that was excluded: "
        '<code>lacuna-site review COHORT --reject SUBJECT --why "..."</code>, or <code>--accept</code>.</p>'
        f"<p>Preparation <code>{_text(digest[:12])}</code></p>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _row(cohort: Path, outcome: "Outcome") -> str:
    quality = outcome.quality
    brain = quality.brain if quality is not None else None
    images = quality.images if quality is not None else {}
    used = [images[m] for m in outcome.files if m in images]
    notes = [outcome.excluded or "", *(f"{m} left out: {w}" for m, w in outcome.left.items())]
    notes += list(quality.warnings) if quality is not None else []
    scores = [figures.registration for figures in used if figures.registration is not None]
    ghosts = [figures.ghost for figures in used if figures.ghost is not None]
    state = "kept" if outcome.excluded is None else "excluded"
    cells = [
        _cell(outcome.name),
        _cell(state, state),
        _cell(" · ".join(note for note in notes if note), "text"),
        _cell(", ".join(outcome.files)),
        _number(brain.ml if brain else None, "{:.0f}"),
        _number(brain.overlap if brain else None),
        _number(brain.tissue if brain else None),
        _number(min(scores, default=None)),
        _number(min((f.coverage for f in used), default=None)),
        _number(min((f.snr for f in used), default=None), "{:.1f}"),
        _number(max(ghosts, default=None)),
        _number(max((v for f in used for v in f.voxel_mm), default=None)),
        f'<td data-v="">{_picture(cohort / "quality" / f"{outcome.name}.png", outcome.name)}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, style: str = "") -> str:
    return f'<td class="{style}" data-v="{_text(text)}">{_text(text)}</td>'


def _number(value: float | None, form: str = "{:.2f}") -> str:
    return '<td data-v="">n/a</td>' if value is None else f'<td data-v="{value:.6g}">{form.format(value)}</td>'


def _picture(path: Path, name: str) -> str:
    if not path.is_file():
        return "none"
    return f'<img alt="{_text(name)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _edges(image: Array, brain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The strongest gradients, thinned to their ridges along each plane."""
    steep = ndimage.gaussian_gradient_magnitude(image, 1.0)
    steep[~brain] = 0
    found: NDArray[np.bool_] = steep > np.quantile(steep[brain], 1 - 3 * EDGE_SHARE)
    found &= steep >= 0.97 * ndimage.maximum_filter(steep, size=3)
    return found


def _with(plane: NDArray[Any], edges: NDArray[Any] | None) -> NDArray[Any]:
    if edges is None:
        return plane
    colours = np.repeat(plane[..., None], 3, axis=2)
    colours[edges] = (0.95, 0.25, 0.2)
    return colours


def _text(value: object) -> str:
    return html.escape(str(value))


def _sha(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
