"""Is this a frontal chest radiograph? Decided from the header alone (PS3.3 sections A.2, A.8.1, A.26, C.8.1, C.8.11).

The gate denies by default: an image that does not say that it shows the chest is not analysed. It is lenient about
how that is said, for departments leave standard elements empty and write free text in their own language.

- Modality: CR and DX; Secondary Capture only where the modality agrees or says nothing (SC, OT, empty).
  DX "for processing" is analysed: some departments archive nothing else, and `pixels` shows it by its range.
- Body part: the coded region first, then Body Part Examined, then the procedure's and the series' text. The first
  of them that names a part decides; a combined region (chest and abdomen) shows the lungs and is accepted.
- A scanned page, a drawing or a screen, an animal and a phantom are refused, whatever else the header says.
- View: an image that says nothing is accepted. The study's text never decides, for "PA and lateral" names both.
  Lateral decubitus is a frontal projection (horizontal beam, patient on the side) and is accepted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from pydicom import Dataset
from pydicom import uid as uids
from pydicom.sequence import Sequence

from cxrnode.dicom.identity import MANUFACTURER
from cxrnode.dicom.orientation import is_quadruped, is_turned_from_detector, lie_of
from cxrnode.types import Reason, Rejection

MIN_SIDE = 64  # pixels; below, nothing of a lung can be seen

_CR = uids.ComputedRadiographyImageStorage
_DX = (uids.DigitalXRayImageStorageForPresentation, uids.DigitalXRayImageStorageForProcessing)
_SC = (
    uids.SecondaryCaptureImageStorage,
    uids.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uids.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uids.MultiFrameTrueColorSecondaryCaptureImageStorage,
)
_NOT_IMAGES = re.compile(
    r"1\.2\.840\.10008\.("
    r"1\..*|"  # verification, directory, storage commitment ...
    r"3\.1\..*|5\.1\.1\..*|"  # print and worklist management
    r"5\.1\.4\.1\.1\.(8|9|10)(\..*)?|"  # standalone overlays, curves and LUTs, waveforms
    r"5\.1\.4\.1\.1\.11(\..*)?|"  # presentation states
    r"5\.1\.4\.1\.1\.66(\.[1-6])?|"  # raw data, registration, fiducials, segmentation
    r"5\.1\.4\.1\.1\.(67|68\..*)|"  # real world value mapping, surfaces
    r"5\.1\.4\.1\.1\.(78|79|80|88|90|91|131|200|201)(\..*)?|"  # measurements, reports, protocols
    r"5\.1\.4\.1\.1\.104\..*|"  # encapsulated documents
    r"5\.1\.4\.1\.1\.481\.(?!1$).*|"  # radiotherapy but for the RT image
    r"5\.1\.4\.(3[1-9]|4[0-9])(\..*)?)"  # procedure steps, hanging protocols
)
_REPORT_MODALITIES = frozenset({"SR", "PR", "KO", "REG", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "DOC",
                                "ECG", "HD", "EPS", "AU", "FID", "RWV", "PLAN"})  # fmt: skip

# CID 4031 Common Anatomic Regions and their ancestors in SRT (PS3.16 annexes B and L)
_CHEST_CODES = frozenset({
    "51185008", "T-D3000",  # thorax
    "816094009",  # chest
    "43799004", "T-D3200",  # thoracic cavity
    "39607008", "T-28000",  # lung
    "181216001", "3341006", "44029006", "T-28100", "T-28500",  # both lungs, right lung, left lung
    "86598002", "T-280A0",  # apex of lung
    "72410000", "T-D3300",  # mediastinum
    "80891009", "T-32000",  # heart
    "416550000", "R-FAB55",  # chest and abdomen
    "416775004", "R-FAB56",  # chest, abdomen and pelvis
    "417437006", "R-FAB52",  # neck and chest
    "416152001", "R-FAB53", "416319003", "R-FAB54",  # neck, chest, abdomen (and pelvis)
})  # fmt: skip
# CID 4010 DX View
_FRONTAL_CODES = frozenset({"272479007", "R-40888", "R-10214", "399348003", "R-10206", "399033003", "R-10202"})
# of the same; the oblique ones are no frontal view either
_LATERAL_CODES = frozenset({
    "399198007", "R-10232",  # right lateral
    "399173006", "R-10236",  # left lateral
    "399067008", "R-102CD",  # lateral
    "399352003", "R-10228",  # lateral-medial
    "399260004", "R-10224",  # medial-lateral
    "30730003", "G-A145",  # sagittal
    "399038007", "R-10210", "399059000", "R-10216", "399135007", "R-10220", "260427002", "R-40783",
    "399236003", "R-10234", "399356000", "R-40985", "399184004", "R-10238", "399312000", "R-10208",
    "399182000", "R-102C1", "399160007", "R-10204", "399006002", "R-10212", "399099002", "R-10230",
    "399368009", "R-10226", "260426006", "R-40782",
})  # fmt: skip


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(word.replace("*", r"\w*") for word in words.split()) + r")\b")


# words of `_words`: no accents, lower case, "*" stands for the rest of the word
_CHEST = _pattern(
    "*chest* *thora* torax* torac* cxr lung lungs lunge lungen* pulmo* poumon* polmon* longen longfoto ribkast borst* "
    "brust* klatk* piersiow* hrudni* grudn* akciger* gogus* mellkas* keuhko* lungor *胸* *흉부* *груд* *легк*"
)
_OTHER = _pattern(
    "abdom* addome* skull head hand hands foot feet knee* hip hips pelvi* shoulder* elbow* wrist* ankle* *spine femur "
    "tibia* fibula humerus forearm clavic* rib ribs stern* neck breast* mammo* arm leg finger* thumb toe toes heel jaw "
    "mandib* sinus* nose *extrem* lumbar* cervical* sacr* coccyx scapula* patella* calcane* bauch* schadel* becken "
    "knie* hufte* genou* pied* bassin crane epaule* rodilla* mano* pie craneo cadera* hombro* columna ginocchio piede "
    "bacino kub panoram* dental wirbel* bws lws hws rachis vertebr* buik voet"
)
# says "thorax" and means the spine
_SPINE = re.compile(
    r"\b(thoracolumb\w*|toracolomb\w*|toracolumb\w*|brustwirbel\w*|thoracic ?(spine|vertebra\w*)|"
    r"(columna|coluna|colonna|rachis|rachide) \w+|(th|thor|thorakale) ?ws)\b"
)
_LATERAL = _pattern(
    "lateral* latero* lat latl llat rlat profil* perfil* seitlich* seitl sagittal* sag oblique* obl schrag* "
    "zijdelings* dwars boczn* bocn* sivu* ll rl rao lao rpo lpo"
)
_NO_FILM = _pattern("screen* document* report* scanned drawing*")  # of the further values of Image Type
_PAGE = _pattern("document* dokument* screenshot*")  # of a series: a screening is none
_PHANTOM = _pattern("phantom phantoms phantome fantom fantome* fantoma* fantoom*")
_HUMAN = _pattern("human* homo hominid* mensch* humain* uman* humano* menselijk* czlowiek")
_HUMAN_CODES = frozenset({"337915000", "L-85B00", "278412004", "9606"})  # SCT, SRT, SCT (legacy), NCBI taxonomy
_ANIMAL_VALUES = {
    "AnatomicalOrientationType": {"QUADRUPED"},
    "PatientSexNeutered": {"ALTERED", "UNALTERED"},
    "ResponsiblePersonRole": {"OWNER"},
}
_BREEDS = ("PatientBreedCodeSequence", "BreedRegistrationSequence", "StrainCodeSequence")
_VETERINARY = _pattern(
    "veterina* tierarzt* tierklinik* tiermedizin* canine feline equine bovine porcine ovine murine avian"
)
_ANIMAL = _pattern(
    "animal* dog dogs cat cats hund hunde chien chienne perro perra cane katze katzen gato gata gatto horse horses "
    "pferd pferde cheval caballo cavallo rabbit rabbits kaninchen puppy kitten ferret* parrot* tortoise*"
)
# a person who was bitten, kicked or thrown off, or has a computed axial tomography
_ACCIDENT = _pattern(
    "bite* bitten biss* attack* kick* fall* fell allerg* riding ride rider reit* sturz morsure mord* morso scan ct film"
)
_FRONTAL = _pattern("pa ap dv vd frontal* front face decub* posteroanterior* anteroposterior* bilateral*")


# from what was exposed to what was ordered: the nearer decides
_PART_TEXTS = (
    "SeriesDescription", "ProtocolName", "PerformedProcedureStepDescription", "RequestedProcedureDescription",
    "StudyDescription",
)  # fmt: skip
_VIEW_TEXTS = ("SeriesDescription", "ProtocolName")  # a study or a procedure step holds several views
_SAYS_NOTHING = frozenset(
    {"", "unknown", "none", "other", "body", "wholebody", "whole body", "trunk", "torso", "na", "misc"}
)


def select(ds: Dataset) -> Rejection | None:
    """None for a frontal chest radiograph (the pixels are not looked at), else why it is not analysed.

    The detail names keywords and coded values, never free text, which may hold patient data.
    """
    for check in _CHECKS:
        rejection = check(ds)
        if rejection is not None:
            return rejection
    return None


def _own_result(ds: Dataset) -> Rejection | None:
    """The loop guard: a PACS that forwards everything sends our results back."""
    if MANUFACTURER not in _words(_text(ds, "Manufacturer")).split():
        return None
    sop_class = _text(ds, "SOPClassUID")
    if sop_class in _SC or sop_class.startswith("1.2.840.10008.5.1.4.1.1.88."):
        return Rejection(reason=Reason.OWN_RESULT)
    return None


def _not_an_image(ds: Dataset) -> Rejection | None:
    sop_class = uids.UID(_text(ds, "SOPClassUID"))
    if _NOT_IMAGES.fullmatch(sop_class):
        return Rejection(reason=Reason.NOT_AN_IMAGE, detail=sop_class.name)
    modality = _text(ds, "Modality")
    if modality in _REPORT_MODALITIES:
        return Rejection(reason=Reason.NOT_AN_IMAGE, detail=modality)
    return None


def _modality(ds: Dataset) -> Rejection | None:
    """The class and the modality must not contradict each other; a private class is taken at its modality's word."""
    sop_class, modality = uids.UID(_text(ds, "SOPClassUID")), _text(ds, "Modality").upper()
    radiograph = sop_class in (_CR, *_DX)
    allowed = {"CR", "DX", "RG"}  # RG: screen-film
    if radiograph:
        allowed |= {""}
    elif sop_class in _SC:
        allowed |= {"", "SC", "OT"}
    if modality not in allowed:
        return Rejection(reason=Reason.WRONG_MODALITY, detail=_coded(modality) or "Modality is empty")
    if not radiograph and sop_class not in _SC and not sop_class.is_private:
        return Rejection(reason=Reason.WRONG_MODALITY, detail=f"{modality} as {sop_class.name}")
    return None


def _picture_of_something_else(ds: Dataset) -> Rejection | None:
    """A scanned page, a drawing, a screen: by Conversion Type (PS3.3 C.8.6.1), of which a digitised film and a digital
    interface stay candidates, or by the further values of Image Type."""
    conversion = _text(ds, "ConversionType").upper()
    if conversion not in ("", "DF", "DI"):
        return Rejection(reason=Reason.WRONG_MODALITY, detail=f"ConversionType {_coded(conversion)}".strip())
    if _NO_FILM.search(_words(_text(ds, "ImageType"))):
        return Rejection(reason=Reason.WRONG_MODALITY, detail="by its ImageType")
    for keyword in _VIEW_TEXTS:
        if _PAGE.search(_words(_text(ds, keyword))):
            return Rejection(reason=Reason.WRONG_MODALITY, detail=f"by its {keyword}")
    return None


def _phantom(ds: Dataset) -> Rejection | None:
    for keyword in ("QualityControlSubject", "QualityControlImage", "CalibrationImage"):
        if _text(ds, keyword).upper() == "YES":
            return _not_of_a_patient(f"{keyword} YES")
    for keyword in _PART_TEXTS:  # patients made up for a test are called so, too
        if _PHANTOM.search(_words(_text(ds, keyword))):
            return _not_of_a_patient(f"by its {keyword}")
    return None


def _animal(ds: Dataset) -> Rejection | None:
    """By the elements that only a non-human patient has (PS3.3 C.7.1.1), else by the words of the study."""
    species, codes = _words(_text(ds, "PatientSpeciesDescription")), list(_codes(ds, "PatientSpeciesCodeSequence"))
    if _HUMAN.search(species) or _HUMAN_CODES.intersection(codes):
        return None
    if species not in _SAYS_NOTHING or codes:
        return _not_of_a_patient("by its species")
    for keyword, values in _ANIMAL_VALUES.items():
        if _text(ds, keyword).upper() in values:
            return _not_of_a_patient(f"{keyword} {_text(ds, keyword).upper()}")
    if is_quadruped(ds):
        return _not_of_a_patient("by its Patient Orientation")
    breeds = {_words(_text(ds, keyword)) for keyword in ("PatientBreedDescription", "StrainDescription")}
    if breeds - _SAYS_NOTHING or any(ds.get(keyword) for keyword in _BREEDS):
        return _not_of_a_patient("by its breed")
    return _animal_by_its_words(ds)


def _animal_by_its_words(ds: Dataset) -> Rejection | None:
    for keyword in ("BodyPartExamined", *_PART_TEXTS, "InstitutionName"):
        words = _words(_text(ds, keyword))
        if _VETERINARY.search(words) or (_ANIMAL.search(words) and not _ACCIDENT.search(words)):
            return _not_of_a_patient(f"by its {keyword}")
    return None


def _not_of_a_patient(detail: str) -> Rejection:
    return Rejection(reason=Reason.NOT_A_PATIENT, detail=detail)


def _body_part(ds: Dataset) -> Rejection | None:
    regions = list(_codes(ds, "AnatomicRegionSequence"))
    if _CHEST_CODES.intersection(regions):
        return None
    part = _text(ds, "BodyPartExamined")
    if _words(part) not in _SAYS_NOTHING:
        return None if _names_chest(part) else _wrong_part(f"BodyPartExamined {_coded(part)}")
    if regions:
        return _wrong_part(f"AnatomicRegionSequence {_coded(regions[0])}")
    for keyword in _PART_TEXTS:
        text = _text(ds, keyword)
        if _names_chest(text):
            return None
        if _OTHER.search(_words(text)):
            return _wrong_part(f"by its {keyword}")
    return _wrong_part("BodyPartExamined is empty and nothing else says chest")


def _names_chest(text: str) -> bool:
    return _CHEST.search(_SPINE.sub(" ", _words(text))) is not None


def _wrong_part(detail: str) -> Rejection:
    return Rejection(reason=Reason.WRONG_BODY_PART, detail=detail.strip())


def _view(ds: Dataset) -> Rejection | None:
    """The first of the view's statements that says something decides."""
    position = _text(ds, "ViewPosition")
    if (frontal := _frontal(position)) is not None:
        return None if frontal else _lateral(f"ViewPosition {_coded(position)}")
    for code in _codes(ds, "ViewCodeSequence"):
        if code in _LATERAL_CODES:
            return _lateral(f"ViewCodeSequence {_coded(code)}")
        if code in _FRONTAL_CODES:
            return None
    lie = lie_of(ds)
    if lie is not None and not lie.is_frontal:  # its rows or columns run from front to back
        return _lateral(f"PatientOrientation {lie}")
    for keyword in _VIEW_TEXTS:
        if _frontal(_text(ds, keyword)) is False:
            return _lateral(f"by its {keyword}")
    return None


def _orientation(ds: Dataset) -> Rejection | None:
    """Of a film that says, or does not deny, that it is frontal."""
    lie = lie_of(ds)
    if lie is not None and not lie.is_frontal:
        return _unclear(f"PatientOrientation {lie} contradicts the frontal view that it states")
    if lie is None and is_turned_from_detector(ds):
        return _unclear("FieldOfViewRotation or FieldOfViewHorizontalFlip without a valid PatientOrientation")
    return None


def _unclear(detail: str) -> Rejection:
    return Rejection(reason=Reason.ORIENTATION_UNCLEAR, detail=detail)


def _frontal(text: str) -> bool | None:
    """None where the text says nothing of a view. One that names both is a series of both: it says nothing here."""
    words = _words(text)
    frontal, lateral = _FRONTAL.search(words), _LATERAL.search(words)
    if frontal:
        return True
    return False if lateral else None


def _lateral(detail: str) -> Rejection:
    return Rejection(reason=Reason.LATERAL, detail=detail.strip())


def _frames(ds: Dataset) -> Rejection | None:
    frames = _text(ds, "NumberOfFrames")
    if frames.isdigit() and int(frames) > 1:
        return Rejection(reason=Reason.MULTI_FRAME, detail=f"{frames} frames")
    return None


def _size(ds: Dataset) -> Rejection | None:
    rows, columns = _text(ds, "Rows"), _text(ds, "Columns")
    if rows.isdigit() and columns.isdigit() and min(int(rows), int(columns)) < MIN_SIDE:
        return Rejection(reason=Reason.IMPLAUSIBLE_PIXELS, detail=f"{columns} x {rows} pixels")
    return None


_CHECKS = (
    _own_result, _not_an_image, _modality, _picture_of_something_else, _phantom, _animal, _body_part, _view,
    _orientation, _frames, _size,
)  # fmt: skip


def _text(ds: Dataset, keyword: str) -> str:
    """The value as text whatever its VR and multiplicity; "" where there is none."""
    value = ds.get(keyword)
    if value is None or isinstance(value, bytes | Dataset):
        return ""
    if isinstance(value, str | int | float):
        return str(value).strip()
    try:
        return " ".join(str(part) for part in value).strip()
    except TypeError:
        return str(value).strip()


def _words(text: str) -> str:
    """Lower case, without accents, words parted by one space."""
    bare = unicodedata.normalize("NFKD", text.translate(_UNACCENTED)).casefold()
    return re.sub(r"[\W_]+", " ", "".join(c for c in bare if not unicodedata.combining(c))).strip()


_UNACCENTED = str.maketrans("łŁıøØđ", "lLioOd")  # letters that Unicode does not take apart


def _codes(ds: Dataset, keyword: str) -> Iterator[str]:
    """Code Value of each item (PS3.3 section 8.8)."""
    items = ds.get(keyword)
    for item in items if isinstance(items, Sequence) else ():
        if value := _text(item, "CodeValue"):
            yield value


def _coded(value: str) -> str:
    """A coded value, for a detail; "" for what may be free text (Code String: PS3.5 section 6.2)."""
    return value if re.fullmatch(r"[A-Za-z0-9 _.-]{1,16}", value) else ""
