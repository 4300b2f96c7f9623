"""What a scanner makes of a phantom: signal equations, one function per modality, and the scanner's own faults.

All modalities of a subject share its tissues and lesions, so they tell of each other; each also sees private smooth
variations of the tissue (`SubjectPhantom.latents`) that the others don't, so none is a function of another
(docs/methods/data.md). MR is in units where healthy tissue is near 1, CT in HU, PET in SUVR.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import ndimage

from shared.base.seeds import seed_of
from shared.base.vocabulary import Modality
from shared.data.phantom.brains import SubjectPhantom
from shared.data.phantom.fields import Array, Cube, Rng, field
from shared.data.phantom.tissues import GREY, INDEX, WHITE, constants

RELAXIVITY = 4.5e-3  # of the contrast agent, 1 / (ms mM)
NOISY = {"FLAIR": 1.3, "T2S": 1.3, "TOF": 0.8}  # noise against that of the same scanner's T1


@dataclass(frozen=True, slots=True, kw_only=True)
class T1Weighting:
    """How a T1 is taken. A spin echo is a flip of 90 degrees."""

    tr: float
    flip: float
    ti: float = 0.0  # of an inversion before; 0 is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """One site's machine. Times in ms, angles in degrees, lengths in mm."""

    seed: int
    t1: T1Weighting
    t1ce: T1Weighting
    t2_tr: float
    t2_te: float
    flair_tr: float
    flair_ti: float
    flair_te: float
    t2s_te: float
    tof_flip: float
    field_factor: float  # T1 against its value at 3 T
    blur_mm: float  # standard deviation in plane
    slab_mm: float  # and through plane, when that is more
    noise: float  # against healthy tissue
    shading: float  # of the receive coil
    gain: float
    gamma: float
    pet_fwhm: float


def draw_scanner(*keys: str | int) -> Scanner:
    """Draw a site's scanner, the same for the same keys."""
    seed = seed_of("scanner", *keys)
    rng = np.random.default_rng(seed)
    between = rng.uniform
    t1 = T1Weighting(tr=between(12, 21), flip=between(24, 33))
    return Scanner(
        seed=seed,
        t1=t1,
        t1ce=t1,
        t2_tr=between(3500, 6500),
        t2_te=between(80, 112),
        flair_tr=between(8000, 10500),
        flair_ti=between(2300, 2600),
        flair_te=between(95, 135),
        t2s_te=between(14, 25),
        tof_flip=between(17, 23),
        field_factor=between(0.88, 1.05),
        blur_mm=between(0.3, 0.8),
        slab_mm=between(1.0, 2.0) if rng.random() < 0.5 else 0.0,
        noise=between(0.008, 0.024),
        shading=between(0.08, 0.25),
        gain=between(0.7, 1.4),
        gamma=between(0.94, 1.06),
        pet_fwhm=between(4.5, 7.0),
    )


def draw_any_scanner(*keys: str | int) -> Scanner:
    """Draw one scanner of all that there are: sequences of every kind, older and newer, thick slices, dark coils."""
    seed = seed_of("any scanner", *keys)
    rng = np.random.default_rng(seed)
    between = rng.uniform
    return Scanner(
        seed=seed,
        t1=_draw_t1(rng),
        t1ce=_draw_t1(rng),
        t2_tr=between(2500, 7500),
        t2_te=between(70, 125),
        flair_tr=between(7000, 11500),
        flair_ti=between(2050, 2700),
        flair_te=between(80, 150),
        t2s_te=between(12, 30),
        tof_flip=between(15, 25),
        field_factor=between(0.78, 1.08),
        blur_mm=between(0.2, 1.2),
        slab_mm=between(1.0, 6.0) if rng.random() < 0.5 else 0.0,
        noise=between(0.003, 0.03),
        shading=between(0.02, 0.25),
        gain=between(0.7, 1.4),
        gamma=between(0.88, 1.14),
        pet_fwhm=between(4.5, 8.0),
    )


def _draw_t1(rng: Rng) -> T1Weighting:
    """A spoiled gradient echo, one with an inversion before it, or a spin echo."""
    kind = rng.choice(["spoiled", "inversion", "spin echo"], p=[0.4, 0.4, 0.2])
    if kind == "spoiled":
        return T1Weighting(tr=rng.uniform(8, 25), flip=rng.uniform(16, 33))
    if kind == "inversion":
        return T1Weighting(tr=rng.uniform(1800, 2500), flip=9.0, ti=rng.uniform(850, 1150))
    return T1Weighting(tr=rng.uniform(400, 750), flip=90.0)


def render(subject: SubjectPhantom, modality: Modality, scanner: Scanner) -> Array:
    """Scan the subject on this scanner: exactly 0 outside the brain. Equal subject and scanner, equal bits."""
    rng = np.random.default_rng(seed_of("scan", subject.seed, scanner.seed, modality))
    image = SCANS[modality](subject, scanner, rng)
    if modality in ("CT", "FDG", "AV45"):
        return np.where(subject.brain_DHW, image, 0).astype(np.float32)
    noise = scanner.noise * NOISY.get(modality, 1.0)
    shade = _shading(rng, subject.cube, scanner) if modality != "TOF" else np.float32(1)
    image = np.clip(image, 0, None) ** scanner.gamma * shade
    image = rician(_resolve(image, subject.cube, scanner, sharp=modality == "TOF"), noise, rng)
    return np.where(subject.brain_DHW, image * np.float32(scanner.gain), 0).astype(np.float32)


def rician(image: Array, noise: float, rng: Rng) -> Array:
    """The magnitude of a complex signal with Gaussian noise in both channels: never negative, never quite dark."""
    real = image + noise * rng.standard_normal(image.shape, np.float32)
    imaginary = noise * rng.standard_normal(image.shape, np.float32)
    return cast(Array, np.sqrt(real * real + imaginary * imaginary))


class _Spins:
    """The MR constants of a subject's tissues on a scanner, and the mixing of one signal per tissue into an image."""

    def __init__(self, subject: SubjectPhantom, scanner: Scanner) -> None:
        table = constants()
        self.pd = table["pd"] * subject.jitter_K3[:, 0]
        self.t1 = table["t1"] * subject.jitter_K3[:, 1] * np.float32(scanner.field_factor)
        self.t2 = table["t2"] * subject.jitter_K3[:, 2]
        self.t2s = table["t2s"]
        self.gd_mM = table["gd_mM"]
        self.mix = subject.mix

    def weighted(self, t1: Array, how: T1Weighting) -> Array:
        """A T1-weighted image, however it is taken."""
        if not how.ti:
            return self.spoiled(t1, how.tr, how.flip)
        recovered = np.abs(1 - 2 * np.exp(-how.ti / t1) / (1 + np.exp(-how.tr / t1)))
        return cast(Array, (self.pd * recovered * np.exp(-4.0 / self.t2s)).astype(np.float32))

    def spoiled(self, t1: Array, tr: float, flip: float, te: float = 4.0) -> Array:
        """Spoiled gradient echo (Ernst)."""
        e1, angle = np.exp(-tr / t1), np.deg2rad(flip)
        signal = self.pd * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1) * np.exp(-te / self.t2s)
        return cast(Array, signal.astype(np.float32))


def _t1(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    spins = _Spins(subject, scanner)
    signal = spins.weighted(spins.t1, scanner.t1)
    signal[INDEX["vessel"]] = 0.8 * signal[INDEX["cortex"]]
    return _t1_texture(subject, subject.mix(signal / signal[INDEX["white"]]))


def _t1ce(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    """Differs from T1 only where the contrast agent is: it speeds up T1."""
    spins = _Spins(subject, scanner)
    with_agent = 1 / (1 / spins.t1 + RELAXIVITY * spins.gd_mM)
    signal = spins.weighted(with_agent, scanner.t1ce)
    signal[INDEX["vessel"]] = 1.9 * signal[INDEX["white"]]
    return _t1_texture(subject, subject.mix(signal / signal[INDEX["white"]]))


def _t1_texture(subject: SubjectPhantom, image: Array) -> Array:
    latent, tissue = subject.latents, _tissue(subject)
    return image * (1 - 0.035 * latent["t1"] * tissue + 0.02 * latent["density"])


def _t2(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    """Turbo spin echo; flowing blood is dark."""
    spins, latent = _Spins(subject, scanner), subject.latents
    signal = spins.pd * (1 - np.exp(-scanner.t2_tr / spins.t1)) * np.exp(-scanner.t2_te / spins.t2)
    image = subject.mix(signal / signal[INDEX["cortex"]])
    image *= 1 + 0.05 * latent["t2"] * _tissue(subject) + 0.02 * latent["density"]
    return image * (1 - 0.75 * subject.fractions["vessel"])


def _flair(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    """Inversion recovery that nulls fluid, so a lesion beside fluid stands out; flow leaves some fluid bright."""
    spins, latent = _Spins(subject, scanner), subject.latents
    recovered = np.abs(1 - 2 * np.exp(-scanner.flair_ti / spins.t1) + np.exp(-scanner.flair_tr / spins.t1))
    signal = spins.pd * recovered * np.exp(-scanner.flair_te / spins.t2)
    image = subject.mix(signal / signal[INDEX["cortex"]])
    image *= 1 + (0.055 * latent["t2"] + 0.035 * latent["t1"]) * _tissue(subject) + 0.02 * latent["density"]
    image += 0.06 * subject.fractions["csf"] * np.clip(latent["iron"], 0, 2)
    return image * (1 - 0.6 * subject.fractions["vessel"])


def _t2s(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    """Gradient echo: iron, blood and calcium take signal away around them too (blooming)."""
    spins = _Spins(subject, scanner)
    signal = spins.pd * np.exp(-scanner.t2s_te / spins.t2s) * (1 - 0.45 * np.exp(-400 / spins.t1))
    image = subject.mix(signal / signal[INDEX["cortex"]]) * (1 + 0.05 * subject.latents["iron"] * _tissue(subject))
    source = subject.fractions["microbleed"] + 0.7 * subject.fractions["calcification"]
    bloom = ndimage.gaussian_filter(source, 2.4 / subject.cube.voxel_mm)
    return cast(Array, image * (1 - np.clip(2.0 * bloom, 0, 0.9)))


def _tof(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    """Time of flight: still tissue is saturated, inflowing blood is not; slabs show, and blood fades as it rises."""
    spins, latent = _Spins(subject, scanner), subject.latents
    still = spins.spoiled(spins.t1, 24.0, scanner.tof_flip)
    still[INDEX["csf"]] *= 1.5  # long TE recovery is spared: CSF would be almost black else
    z = subject.cube.axes()[0]
    slabs = 1 + 0.04 * np.cos(2 * np.pi * z / 34)
    tissue = subject.mix(0.42 * still / still[INDEX["white"]]) * (1 + 0.05 * latent["density"]) * slabs
    inflow = np.interp(z, [-60, 70], [1.15, 0.8]).astype(np.float32)
    return cast(Array, tissue + 2.6 * subject.vessels_DHW * inflow * (1 + 0.08 * latent["iron"]))


def _ct(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    voxel = subject.cube.voxel_mm
    image = subject.mix(constants()["hu"]) + 1.6 * subject.latents["density"] * _tissue(subject)
    image = ndimage.gaussian_filter(image, 0.8 / voxel)
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), 0.6)
    return cast(Array, image + 180 * scanner.noise * grain)


def _fdg(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    """Glucose uptake; disease lowers it in temporo-parietal and posterior cingulate cortex, before that shrinks."""
    person, cortex = subject.person, subject.fractions["cortex"]
    image = subject.mix(constants()["fdg"]) * (1 + 0.06 * subject.latents["pet"] * subject.fractions.total(GREY))
    near = np.clip(2 * ndimage.gaussian_filter(cortex, 2 / subject.cube.voxel_mm) + 0.05, 0, 1)
    image *= 1 + 0.10 * np.clip(subject.vulnerable_DHW, 0, 1) * cortex
    image *= 1 - 0.5 * person.severity * np.clip(subject.vulnerable_DHW, 0, 1.3) * near
    image *= 1 - 0.15 * person.severity * subject.fractions["hippocampus"]
    return _count(image, subject.cube, scanner, rng)


def _av45(subject: SubjectPhantom, scanner: Scanner, rng: Rng) -> Array:
    """Amyloid: white matter always binds some; grey matter comes up to it, and over it, as plaques gather."""
    table, person = constants(), subject.person
    free, full = subject.mix(table["amyloid_free"]), subject.mix(table["amyloid_full"])
    load = np.clip(1.15 * person.amyloid * (0.45 + 0.6 * subject.amyloid_DHW), 0, 1.2)
    grey = subject.fractions.total(GREY)
    image = free + (full - free) * load + (0.05 + 0.12 * person.amyloid) * subject.latents["amyloid"] * grey
    return _count(image, subject.cube, scanner, rng)


SCANS: Mapping[Modality, Callable[[SubjectPhantom, Scanner, Rng], Array]] = {
    "T1": _t1,
    "T1CE": _t1ce,
    "T2": _t2,
    "FLAIR": _flair,
    "T2S": _t2s,
    "CT": _ct,
    "FDG": _fdg,
    "AV45": _av45,
    "TOF": _tof,
}


def _tissue(subject: SubjectPhantom) -> Array:
    return subject.fractions.total((*GREY, *WHITE))


def _shading(rng: Rng, cube: Cube, scanner: Scanner) -> Array:
    """The coil's own shading, and how the head lies in it."""
    coil = field(np.random.default_rng(scanner.seed), cube, 130.0)
    head = field(rng, cube, 100.0)
    return np.exp(np.float32(scanner.shading) * (0.6 * head + 0.3 * coil))


def _resolve(image: Array, cube: Cube, scanner: Scanner, *, sharp: bool) -> Array:
    plane, through = (0.3, 0.3) if sharp else (scanner.blur_mm, max(scanner.blur_mm, scanner.slab_mm))
    sigmas = [mm / cube.voxel_mm for mm in (through, plane, plane)]
    return cast(Array, ndimage.gaussian_filter(image, sigmas))


def _count(image: Array, cube: Cube, scanner: Scanner, rng: Rng) -> Array:
    """A PET camera: its resolution, and noise of the counts as reconstruction leaves it, in clumps."""
    seen = ndimage.gaussian_filter(image, scanner.pet_fwhm / 2.355 / cube.voxel_mm)
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape, np.float32), 1.6 / cube.voxel_mm + 0.5)
    return cast(Array, np.clip(seen * (1 + 7 * scanner.noise * grain), 0, None))
