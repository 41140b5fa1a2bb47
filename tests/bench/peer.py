"""The loop that a user would write, with the usual libraries: what run-batch is measured against.

python -m tests.bench.peer ARCHIVE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import onnxruntime as ort
from highdicom.sr.coding import CodedConcept
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from engines.bundle import load_bundle
from tests.bench.archive import paths


def main(archive: Path, out: Path) -> None:
    out.mkdir(parents=True)
    bundle = load_bundle("default")
    shape = bundle.manifest.input
    session = ort.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    for path in paths(archive):
        ds = dcmread(path)
        pixels = apply_voi_lut(apply_modality_lut(ds.pixel_array, ds), ds).astype(np.float32)
        grey = (pixels - pixels.min()) / (pixels.max() - pixels.min())
        image = np.asarray(Image.fromarray(grey).resize((shape.columns, shape.rows), Image.Resampling.BOX))
        batch = np.repeat(((image - image.mean()) / image.std())[None, None], shape.channels, axis=1)
        probabilities, _, cam = session.run(["probabilities", "class_index", "cam"], {"images": batch})
        report(ds, dict(zip((label.name for label in bundle.labels), probabilities[0], strict=True))).save_as(
            out / f"{path.stem}-sr.dcm"
        )
        capture(ds, grey, cam[0]).save_as(out / f"{path.stem}-sc.dcm")


def report(ds: Dataset, probabilities: dict[str, float]) -> Dataset:
    """highdicom, TID 1500, one group with one number a class."""
    observer = hd.sr.DeviceObserverIdentifyingAttributes(uid=generate_uid(), name="loop")
    context = hd.sr.ObservationContext(observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, observer))
    numbers = [
        hd.sr.Measurement(
            name=CodedConcept("122157", "DCM", "Probability"),
            value=float(p),
            unit=codes.UCUM.NoUnits,
            finding_sites=[hd.sr.FindingSite(codes.SCT.Lung)],
        )
        for p in probabilities.values()
    ]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier="film"),
        source_images=[hd.sr.SourceImageForMeasurementGroup.from_source_image(ds)],
        measurements=numbers,
    )
    content = hd.sr.MeasurementReport(context, codes.LN.DiagnosticImagingReport, imaging_measurements=[group])
    return hd.sr.Comprehensive3DSR(
        evidence=[ds], content=content, series_number=900, series_instance_uid=generate_uid(),
        sop_instance_uid=generate_uid(), instance_number=1, manufacturer="loop", is_complete=True,
    )  # fmt: skip


def capture(ds: Dataset, grey: np.ndarray[Any, Any], cam: np.ndarray[Any, Any]) -> Dataset:
    """highdicom, the film at a long side of 1024 with the map in red."""
    size = (1024 * grey.shape[1] // max(grey.shape), 1024 * grey.shape[0] // max(grey.shape))
    base = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    heat = np.asarray(Image.fromarray(cam / max(float(cam.max()), 1e-6)).resize(size, Image.Resampling.BILINEAR))
    rgb = np.repeat(base[..., None], 3, axis=2)
    rgb[..., 0] = np.clip(rgb[..., 0] + 0.5 * heat, 0, 1)
    return hd.sc.SCImage.from_ref_dataset(
        ref_dataset=ds, pixel_array=(rgb * 255).astype(np.uint8), photometric_interpretation="RGB",
        bits_allocated=8, coordinate_system=hd.CoordinateSystemNames.PATIENT, series_instance_uid=generate_uid(),
        sop_instance_uid=generate_uid(), series_number=901, instance_number=1, manufacturer="loop",
        patient_orientation=("L", "F"),
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
