"""What may stay of a sidecar: entries by name, values by vocabulary; nothing else does.

DICOM PS3.15 Annex E lists what must go. Here it is turned round: what is not named here goes, whether the standard of
this year knows it or not. Text (Clean Descriptors Option) is taken apart into words, and only these words stay: a name
in a series description is lost without being known to be one. A missing word costs a site a word, never a secret.
"""

import re
from collections.abc import Mapping


def _listed(*words: str) -> frozenset[str]:
    return frozenset(" ".join(words).split())


MOST = 1e6  # a number beyond this is no setting of a scanner; 19561224 is a date of birth
MOST_OF: Mapping[str, float] = {
    "RadionuclideTotalDose": 1e11,
    "RadionuclideHalfLife": 1e8,
    "DoseCalibrationFactor": 1e9,
    "InjectedRadioactivity": 1e11,
    "FrameDuration": 1e8,
}

WORDS = _listed(
    # sequences and contrasts
    """
    t1 t1w t1n t1c t1ce t1gd t1fl t1tse t1se t2 t2w t2f t2s t2star t2tse t2fse pd pdw flair dark fluid tof mra angio
    mprage mp rage mp2rage bravo ir spgr irspgr fspgr fspgre spoiled gradient echo gre ge se tse fse ffe tfe tfl
    tirm tir stir space cube vista vibe flash fisp ciss swi swan swip phase magnitude mag pha real imaginary dwi dti
    adc trace diff diffusion epi bold rest fmri field map fieldmap asl pcasl perf perfusion dsc dce inv inversion
    recovery spin fast turbo fat sat fs water supp suppressed weighted anat func acq run grappa sense smash asset
    arc caipi smallfov propeller blade multi single shot dixon opp in out localizer localiser loc scout survey cal
    calibration reference ref aahead accelerated native
    """,
    # planes, parts, contrast agents, orders
    """
    ax axial tra transverse transversal sag sagittal cor coronal obl oblique iso isotropic volume mpr mip mips thick
    thin slice slices head brain skull neck spine neuro cranial cerebral whole body pre post plain without with
    contrast ce c gd gad gado gadolinium gadavist dotarem gadovist prohance magnevist multihance omniscan clariscan
    iv none no yes w wo of and the for per ms mm
    """,
    # CT and PET
    """
    ct pet nac ac uncorrected corrected attenuation correction wb static dynamic recon osem tof psf ufov bone soft
    tissue kernel standard smooth sharp stnd std head helical spiral sequential angio cta perf fdg
    fluorodeoxyglucose florbetapir av45 amyvid amyloid f18 18f fluorine f 18 bq ml bqml suv suvbw cnts gml
    hounsfield hu us h10s h20s h30s h31s h37s h40s h41s h60s hr38 hr40 hr59 j30s j37s j40s j45s qr40 br38 br40 fc21
    fc26 fc64 fc68 ua ub uc
    """,
    # makers and machines
    """
    siemens healthcare healthineers gmbh ag ge medical systems philips toshiba tec canon hitachi united imaging uih
    fujifilm magnetom avanto verio skyra prisma prismafit fit trio triotim tim biograph mmr mct vision aera espree
    symphony sonata sola vida lumina terra vista allegra altea amira free star signa discovery optima pioneer
    premier architect artist voyager hero hdx hdxt hde excite genesis explorer achieva ingenia ambition elition
    intera ingenuity gemini vereos panorama multiva prodiva somatom sensation definition edge flash force drive
    emotion go up all now perspective revolution evo lightspeed brightspeed vct ultra pro plus brilliance icq ict
    iqon aquilion prime one titan galan vantage orian elan mr mri 3t 7t syngo software release dream
    """,
    # defined terms of code strings
    """
    original derived primary secondary other mosaic norm nd dis2d dis3d m r p i fm fm3 fil mfsplit pp m_ffe m_se
    m_ir subtraction projection image resampled composite distorted axial localizer sum vibe unspecified mixed recon
    monochrome1 monochrome2 monochrome palette color rgb identity linear linear_exact sigmoid inverse hfs hfp ffs
    ffp hfdr hfdl ffdr ffdl row col column 1h 3he 23na 31p 2d 3d cartesian rectilinear radial spiral full gr ep rm
    sk sp mtc osp ss trss mp cine pfp pfa pf ppg fc sfs vb po sl pc fp eg seg dg nov fr nopat gems edr acc filtered
    si epir vasc vascular product research service partial complete fixed variable iec fda mhw modified unmodified
    unaltered y n u b l 00 01 us cr 4c ti none both max min mean count emission transmission start admin nornd decy
    atten scat dtim motn pmot clin ran rad dcal prompts prmp emis tran gated reprojected dlyd singles bsa bw lbm
    brain head skull neck wholebody headneck user attenuation_corrected arterial venous hz t mt
    """,
    # what dcm2niix says of a conversion
    "dcm2niix adaptive combine i j k rad s",
)
PATTERNS = re.compile(
    r"\d{1,2}(\.\d{1,2})?(mm|ms|deg|ch|t)|\d{1,4}(k|kv)|[1-4]d|b\d{1,4}|p[2-6]|e[1-9]"  # 3mm, 2d, b1000
    r"|mr\d{3}w?|h\d{2}s|(n?x|v)[a-e]\d{2}[a-z]?"  # MR750w, VE11C, XA30
    r"|(e?f?gre|spgr|ef?spgr|tfl|tse|tir|fl|spc|spcir|ep|epse|epfid|swi|fi|qfl|efgre|bravo)(\dd)?\d{0,2}"  # sequences
)

DEIDENTIFIERS = _listed(  # words about de-identification itself
    """
    mri_reface mri deface pydeface mri_deface mideface quickshear afni_refacer afni refacer fsl_deface defaced
    lacuna ctp rsna orthanc xnat dcm4che gdcm posda kitware dicom anonymizer replace recognizable
    replace_recognizable face ears and artifacts in air visual features clean pixel data descriptors structured
    content graphics option options basic application level confidentiality profile retain longitudinal temporal
    information modified full dates safe private details per ps annexe annex e allow list lists ps3 15 3 0012 0064
    removed limited set dcm deid allow-list ps3.15 3.15
    """
)

# The entries that may stay, by what their values must be; of UIDs and dates see sidecar.py.
NUMBERS = _listed(
    """
    MagneticFieldStrength ImagingFrequency EchoTime EchoTime1 EchoTime2 EchoNumber EchoTrainLength RepetitionTime
    RepetitionTimeExcitation RepetitionTimePreparation InversionTime FlipAngle SliceThickness SpacingBetweenSlices
    SAR SliceTiming SeriesNumber AcquisitionNumber BaseResolution ShimSetting PercentPhaseFOV PercentSampling
    PhaseEncodingSteps FrequencyEncodingSteps PhaseEncodingStepsOutOfPlane AcquisitionMatrixPE ReconMatrixPE
    ParallelReductionFactorInPlane ParallelReductionFactorOutOfPlane MultibandAccelerationFactor PartialFourier
    AcquisitionDuration PixelBandwidth BandwidthPerPixelPhaseEncode DwellTime EffectiveEchoSpacing TotalReadoutTime
    EstimatedEffectiveEchoSpacing EstimatedTotalReadoutTime DerivedVendorReportedEchoSpacing WaterFatShift
    PhaseResolution ImageOrientationPatientDICOM NumberOfAverages RefLinesPE TxRefAmp TablePosition
    NumberOfKSpaceTrajectories PhilipsRescaleSlope PhilipsRescaleIntercept PhilipsScaleSlope PhilipsRWVSlope
    PhilipsRWVIntercept UsePhilipsFloatNotDisplayScaling NonlinearGradientCorrection MTState SpoilingState RawImage
    KVP XRayExposure XRayTubeCurrent CTDIvol GantryDetectorTilt ExposureTime InjectedRadioactivity InjectedMass
    SpecificRadioactivity InjectedVolume FrameTimesStart FrameDuration DecayFactor DecayCorrectionFactor
    DoseCalibrationFactor RadionuclideTotalDose RadionuclideHalfLife RadionuclidePositronFraction ScatterFraction
    ScanStart InjectionStart InjectionEnd ImageDecayCorrected ImageDecayCorrectionTime SUVFactor SUVScale
    AcquisitionVoxelSize ReconFilterSize ReconMethodParameterValues
    """
)
TEXTS = _listed(
    """
    Modality Manufacturer ManufacturersModelName SoftwareVersions PatientPosition BodyPart BodyPartExamined
    MRAcquisitionType SeriesDescription ProtocolName ScanningSequence SequenceVariant ScanOptions SequenceName
    PulseSequenceType ImageType ImageTypeText ParallelAcquisitionTechnique PhaseEncodingDirection PhaseEncodingAxis
    PhaseEncodingPolarityGE InPlanePhaseEncodingDirectionDICOM PartialFourierDirection MatrixCoilMode
    CoilCombinationMethod ConvolutionKernel ContrastBolusAgent ContrastBolusIngredient Radiopharmaceutical
    TracerName TracerRadionuclide Units UnitsNote AcquisitionMode AttenuationCorrection AttenuationCorrectionMethod
    ScatterCorrectionMethod RandomsCorrectionMethod ReconstructionMethod ReconMethodName DecayCorrection
    ModeOfAdministration InjectedRadioactivityUnits InjectedMassUnits SpecificRadioactivityUnits ReconFilterType
    ReconMethodParameterLabels ReconMethodParameterUnits ConversionSoftware SUVType
    """
)
