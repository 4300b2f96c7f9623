"""What a series is: rules over tags, each with the reason it gives; a person's word stands above them (listing.py).

The tags of the sequence decide (its kind, its times in ms, contrast agent, tracer, kernel). The description is a weak
hint: it never maps a series, it only settles whether a T1 whose contrast tag is empty was taken after contrast, and it
is shown as a suggestion where the tags say too little. A reason holds no text from the file: numbers and our own words.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from client.ingest.recognise.series import Series
from shared.base.vocabulary import Modality
from shared.data.modalities import MODALITIES

MIN_SLICES = 8
HEAD_MM = (45.0, 400.0)  # from the first slice to the last: shorter is a slab, longer is a body
MIN_PIXELS = 32  # along an edge


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A modality, or None; why; and what the description suggests, for a person to confirm."""

    modality: Modality | None
    why: str
    hint: Modality | None = None


def classify(series: Series) -> Verdict:
    """The rules' verdict on one series, whole or not."""
    hint = described(series)
    for rule in _ASIDE:
        why = rule(series)
        if why:
            return Verdict(modality=None, why=why, hint=hint)
    verdict = {"MR": _mr, "CT": _ct, "PT": _pet}[series.kind](series)
    return Verdict(modality=verdict.modality, why=verdict.why, hint=hint if verdict.modality is None else None)


# What is never an input, whatever its contrast ------------------------------------------------------------------------

_DERIVED_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("LOCALIZER", "SCOUT", "SURVEY"), "a localiser"),
    **dict.fromkeys(
        ("MIP", "MAX_IP", "MNIP", "MIN_IP", "MINIP", "PROJECTION IMAGE", "PROJECTION", "CSA MIP"),
        "a projection of another series",
    ),
    **dict.fromkeys(
        ("MPR", "REFORMATTED", "RESAMPLED", "CSA MPR", "CSAPARALLEL", "CPR", "RANGE"), "a reformat of another series"
    ),
    **dict.fromkeys(
        ("ADC", "FA", "TRACEW", "TRACE", "DIFFUSION", "TENSOR", "EXP", "EADC", "COLFA"), "a diffusion image or map"
    ),
    **dict.fromkeys(
        ("CBF", "CBV", "MTT", "TTP", "RCBV", "RCBF", "TMAX", "PERFUSION", "PBP", "GBP", "ASL", "TIME"),
        "a perfusion image or map",
    ),
    **dict.fromkeys(
        (
            "T1 MAP",
            "T2 MAP",
            "T2_STAR MAP",
            "T2* MAP",
            "R2_STAR MAP",
            "R2* MAP",
            "R1",
            "R2",
            "B1",
            "B0 MAP",
            "FIELD MAP",
            "FIELD_MAP",
            "PROTON_DENSITY MAP",
            "QUANTITATIVE",
            "QSM",
            "SUBTRACTION",
            "SUBTRACT",
            "RATIO",
            "WATER",
            "FAT",
            "IN_PHASE",
            "OUT_OF_PHASE",
            "UNI",
        ),
        "a derived map",
    ),
    **dict.fromkeys(("SWI", "VENOGRAM"), "susceptibility-weighted: its magnitude is multiplied by a phase mask"),
    **dict.fromkeys(
        ("P", "PHASE", "PHASE MAP", "REAL", "R", "I", "IMAGINARY", "PHASE CONTRAST M", "VELOCITY MAP"),
        "a phase, real or imaginary image",
    ),
    **dict.fromkeys(("SCREEN SAVE", "SCREENSAVE", "SCREEN_CAPTURE", "REPORT", "VRT", "3D RENDERING"), "a picture"),
    **dict.fromkeys(("IODINE", "MONO_E", "VNC", "MONOENERGETIC", "EFF_Z", "ELECTRON_DENSITY"), "a spectral CT map"),
    **dict.fromkeys(("EPI", "FMRI", "MOSAIC", "T_MAP"), "echo-planar, as in functional imaging"),
}
_OTHER_PARTS = re.compile(
    r"ABDOMEN|ANKLE|ARM|BREAST|CHEST|ELBOW|EXTREMITY|FEMUR|FINGER|FOOT|HAND|HEART|HIP|KNEE|LEG|LIVER|NECK|PELVIS|"
    r"PROSTATE|SHOULDER|WRIST|(C|T|L|CERVICAL|THORACIC|LUMBAR|WHOLE)?SPINE"
)


def is_synthetic(series: Series) -> bool:
    """Did Lacuna, or something like it, make this image?"""
    said = " ".join(series.first.text(tag) for tag in ("SeriesDescription", "DerivationDescription", "ImageType"))
    return "SYNTHETIC" in said.upper() or any(header.text("SyntheticData") == "YES" for header in series.headers)


def _synthetic(series: Series) -> str:
    return "a synthetic image: never an input again" if is_synthetic(series) else ""


def _derived(series: Series) -> str:
    words = series.first.words("ImageType") + series.first.words("FrameType")
    for word in words[2:]:
        if word in _DERIVED_WORDS:
            return _DERIVED_WORDS[word]
    if words[:2] == ("DERIVED", "SECONDARY"):
        return "derived from another series"
    if series.kind == "MR" and series.first.text("ComplexImageComponent") in ("PHASE", "REAL", "IMAGINARY"):
        return "a phase, real or imaginary image"
    if series.first.text("ComplexImageComponent") == "MIXED":
        return "magnitude and phase in one series, as of a field map"
    return ""


def _burned_in(series: Series) -> str:
    return "has text burned into its voxels, says its tag" if series.first.text("BurnedInAnnotation") == "YES" else ""


def _elsewhere(series: Series) -> str:
    part = re.sub(r"[^A-Z]", "", series.first.text("BodyPartExamined").upper())
    return "of another part of the body, says its tag" if _OTHER_PARTS.fullmatch(part) else ""


def _sequence(series: Series) -> str:
    """The makers' own names of the sequence."""
    return f"{series.first.text('SequenceName')} {series.first.text('PulseSequenceName')}".lower()


def _diffusion(series: Series) -> str:
    b = max((h.real("DiffusionBValue") or 0 for h in series.headers), default=0)
    names = _sequence(series)
    return "diffusion-weighted" if b > 0 or "ep_b" in names or "re_b" in names else ""


def _echo_planar(series: Series) -> str:
    names = _sequence(series)
    planar = "EP" in series.first.words("ScanningSequence") or re.search(r"\bepfid|\bep2d|\bepse|\*ep", names)
    return "echo-planar, as in functional, perfusion or diffusion imaging" if planar else ""


def _small(series: Series) -> str:
    if min(series.first.real("Rows") or 0, series.first.real("Columns") or 0) < MIN_PIXELS:
        return f"fewer than {MIN_PIXELS} pixels along an edge"
    if series.fault or not series.slices:
        return ""  # how many slices there are is not known
    if series.slices < MIN_SLICES:
        return f"{series.slices} slices: too few for a volume (a localiser, or single slices)"
    extent = series.extent + series.step
    if not HEAD_MM[0] <= extent <= HEAD_MM[1]:
        return f"covers {extent:.0f} mm: not a head ({HEAD_MM[0]:.0f} to {HEAD_MM[1]:.0f} mm)"
    return ""


_ASIDE: tuple[Callable[[Series], str], ...] = (
    _synthetic,
    _derived,
    _burned_in,
    _diffusion,
    _echo_planar,
    _elsewhere,
    _small,
)


# MR -------------------------------------------------------------------------------------------------------------------


def _no(why: str) -> Verdict:
    return Verdict(modality=None, why=why)


def _yes(modality: Modality, why: str) -> Verdict:
    return Verdict(modality=modality, why=why)


def _mr(series: Series) -> Verdict:
    header = series.first
    tr, te, ti = (header.real(tag) for tag in ("RepetitionTime", "EchoTime", "InversionTime"))
    if te is None or tr is None:
        return _no("its tags say too little: no repetition or echo time")
    if tr <= 0 or te < 0:
        return _no(f"a repetition time of {tr:g} ms and an echo time of {te:g} ms")
    words = header.words("ScanningSequence")
    inverted = (ti or 0) > 0 or "IR" in words
    if _is_flow(series):
        return _flow(series, tr, te)
    if "SE" in words and "GR" not in words:
        return _inversion_spin_echo(series, tr, te, ti) if inverted else _spin_echo(series, tr, te)
    if "GR" in words or (inverted and te < 15):
        return _inversion_gradient(series, tr, te, ti) if inverted else _gradient_echo(series, tr, te)
    if inverted and te >= 60:
        return _inversion_spin_echo(series, tr, te, ti)
    return _no("its tags say too little: neither spin echo nor gradient echo")


def _spin_echo(series: Series, tr: float, te: float) -> Verdict:
    says = f"spin echo, TR {tr:.0f}, TE {te:.0f} ms"
    if te <= 45 and tr <= 1300:
        return _t1(series, says)
    if te >= 60 and tr >= 1500:
        return _yes("T2", says)
    if te < 60 and tr >= 1500:
        return _no(f"{says}: weighted by proton density")
    return _no(f"{says}: no usual weighting")


def _inversion_spin_echo(series: Series, tr: float, te: float, ti: float | None) -> Verdict:
    says = f"inversion spin echo, TR {tr:.0f}, TE {te:.0f}, TI {ti or 0:.0f} ms"
    if not ti:
        return _no(f"{says}: without its inversion time FLAIR and STIR look alike")
    if 1300 <= ti <= 3500 and te >= 60:
        return _yes("FLAIR", says)
    if ti < 300:
        return _no(f"{says}: fat is nulled (STIR)")
    if ti <= 1300 and te <= 50:
        return _t1(series, says)
    return _no(f"{says}: no usual weighting")


def _inversion_gradient(series: Series, tr: float, te: float, ti: float | None) -> Verdict:
    says = f"gradient echo after inversion, TE {te:.1f}, TI {ti or 0:.0f} ms"
    if te > 12:
        return _no(f"{says}: no usual weighting")
    if ti and not 250 <= ti <= 1500:
        return _no(f"{says}: no usual inversion time for T1")
    if series.echoes > 1:
        return _no(f"{says}, {series.echoes} echoes: which one to take is a person's choice")
    return _t1(series, says)


def _gradient_echo(series: Series, tr: float, te: float) -> Verdict:
    flip = series.first.real("FlipAngle") or 0
    says = f"gradient echo, TR {tr:.0f}, TE {te:.1f} ms, {flip:.0f} degrees"
    if series.echoes > 1:
        return _no(f"{says}, {series.echoes} echoes: a field map or a multi-echo series")
    names = _sequence(series)
    if re.search(r"ci3d|tfi|trufi|fiesta|\bssfp|bffe|balanced|dess|de3d", names):
        return _no(f"{says}: steady-state free precession")
    if "MP" in series.first.words("SequenceVariant") and te <= 8:
        return _t1(series, f"{says}, magnetisation prepared")
    if te >= 10:
        return _yes("T2S", says)
    if te <= 8 and ((tr <= 60 and flip >= 6) or (60 < tr <= 600 and flip >= 50)):
        return _t1(series, says)
    return _no(f"{says}: no usual weighting")


def _is_flow(series: Series) -> bool:
    words = series.first.words("ImageType") + series.first.words("SequenceVariant")
    return (
        series.first.text("AngioFlag") == "Y"
        or "TOF" in words
        or series.first.text("TimeOfFlightContrast") == "YES"
        or series.first.text("PhaseContrast") == "YES"
        or any("flow" in word.lower() or "ANGIO" in word for word in words)
    )


def _flow(series: Series, tr: float, te: float) -> Verdict:
    says = f"angiography, TR {tr:.0f}, TE {te:.1f} ms"
    names = _sequence(series)
    if series.first.text("PhaseContrast") == "YES" or "PC" in series.first.words("ImageType") or "fl_pc" in names:
        return _no(f"{says}: by phase contrast, not time of flight")
    if _agent(series):
        return _no(f"{says}: with a contrast agent, not time of flight")
    if "SE" in series.first.words("ScanningSequence"):
        return _no(f"{says}: by spin echo, not time of flight")
    return _yes("TOF", says) if te <= 12 and tr <= 60 else _no(f"{says}: no usual time of flight")


# Before or after contrast ---------------------------------------------------------------------------------------------

_NO_AGENT = {"", "NONE", "NO", "N", "0", "NA", "NATIVE", "NATIV", "NOCONTRAST", "WITHOUT", "OHNE", "SANS", "UNKNOWN"}
_POST = re.compile(
    r"(?<![a-z])(gd|gad|gado\w*|post|postcontrast|ce|km|kontrast\w*|contrast|c\+|dotarem|gadovist|prohance|magnevist|"
    r"multihance|clariscan|inj\w*|mdc)(?![a-z])(?!\W*fossa)|\+\W?c(?![a-z])"
)
_WITHOUT = re.compile(
    r"(?<![a-z])(ohne|without|w/o|sans|senza|no|non|pre)\W*(km|kontrast\w*|contrast|gd|gad\w*|mdc|ce|c)\b"
)
_PRE = re.compile(r"(?<![a-z])(pre|precontrast|nativ\w*|unenhanced|ohne|sans|without|no|non)(?![a-z])")


def _agent(series: Series) -> bool:
    """Was a contrast agent given, by the tag?"""
    return re.sub(r"[^A-Z0-9]", "", series.first.text("ContrastBolusAgent").upper()) not in _NO_AGENT


def _words(series: Series, tag: str) -> str:
    return re.sub(r"[_\\/]", " ", series.first.text(tag)).lower()


def _t1(series: Series, says: str) -> Verdict:
    said = _WITHOUT.sub("native", _words(series, "SeriesDescription"))
    post, pre = bool(_POST.search(said)), bool(_PRE.search(said))
    if _agent(series):
        if pre and not post:
            return _no(f"{says}: its contrast tag and its description contradict each other; say T1 or T1CE")
        return _yes("T1CE", f"{says}, with a contrast agent")
    if post and pre:
        return _no(f"{says}: its description names contrast and its absence; say T1 or T1CE")
    if post:
        return _yes("T1CE", f"{says}; the contrast tag is empty, but the description names a contrast agent")
    return _yes("T1", says)


def described(series: Series) -> Modality | None:
    """What the description alone would make of it: a suggestion for a person, never a verdict."""
    said = f"{_words(series, 'SeriesDescription')} {_words(series, 'ProtocolName')}"
    if series.kind == "CT":
        return "CT"
    for modality, pattern in _DESCRIPTIONS.items():
        if (MODALITIES[modality].kind == "pet") == (series.kind == "PT") and re.search(pattern, said):
            return "T1CE" if modality == "T1" and _POST.search(said) else modality
    return None


_DESCRIPTIONS: Mapping[Modality, str] = {
    "FLAIR": r"flair|dark.?fluid",
    "TOF": r"\btof|time.of.flight",
    "T2S": r"t2.?\*|t2.?star|\bswi\b|\bswan\b|\bhemo|\bgre\b",
    "T1": r"(?<![a-z])t1|mp.?rage|\bspgr|\bbravo\b|\bvibe\b|\btfl\b",
    "T2": r"(?<![a-z])t2",
    "FDG": r"fdg",
    "AV45": r"av.?45|florbetapir|amyvid",
}


# CT and PET -----------------------------------------------------------------------------------------------------------


def _ct(series: Series) -> Verdict:
    if _agent(series):
        return _no("CT with a contrast agent; Lacuna's CT is without")
    if series.first.text("RescaleType").upper() not in ("", "HU", "US"):
        return _no("CT whose values are not in Hounsfield units, says its tag")
    kernel = series.first.text("ConvolutionKernel")
    if _is_sharp(kernel, series.first.text("Manufacturer")):
        return _no("CT with a sharp kernel, as for bone")
    return _yes("CT", "CT in Hounsfield units" + ("" if kernel else "; its kernel is not said"))


def _is_sharp(kernel: str, manufacturer: str) -> bool:
    """By the makers' own names: GE BONE, EDGE; Siemens H60s, Hr64, B70f; Philips YA to YD, D, L; Canon FC30, FC80."""
    plain, maker = kernel.upper().replace("\\", " ").strip(), manufacturer.upper()
    if re.match(r"BONE|EDGE|LUNG|ULTRA|CHEST", plain):
        return True
    if "SIEMENS" in maker and (number := re.match(r"[A-Z]+(\d\d)", plain)):
        return int(number[1]) >= 50
    if "PHILIPS" in maker:
        return re.match(r"(Y[A-D]|D|E|F|L)( |$)", plain) is not None
    if re.match(r"FC\d\d", plain):
        return int(plain[2:4]) in (*range(30, 40), *range(50, 60), *range(80, 90))
    return False


_TRACERS: Mapping[Modality, tuple[frozenset[str], str]] = {  # codes of CID 4021, SCT and SRT; names in use
    "FDG": (frozenset(("35321007", "C-B1031")), r"fdg|fluoro.?deoxy.?glucose|fludeoxyglucose"),
    "AV45": (frozenset(("456995000", "C-E0269")), r"av.?45|florbetapir|amyvid"),
}


def _pet(series: Series) -> Verdict:
    corrected = series.first.words("CorrectedImage")
    if corrected and "ATTN" not in corrected:
        return _no("PET without attenuation correction")
    code = series.first.text("RadiopharmaceuticalCode")
    name = f"{series.first.text('Radiopharmaceutical')} {series.first.text('RadiopharmaceuticalMeaning')}".lower()
    for tracer, (codes, pattern) in _TRACERS.items():
        if code in codes or re.search(pattern, name):
            return _yes(tracer, f"PET of {tracer}, by its radiopharmaceutical")
    if code or name.strip():
        return _no(f"PET of a tracer other than {' and '.join(_TRACERS)}")
    return _no("PET whose tracer is not said")
