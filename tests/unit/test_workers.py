"""The way a film takes in the node, reduced JPEG 2000 decoding included, against the plain way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cxrnode.dicom.pixels import MEAN_ERROR, PREVIEW_LONG_SIDE, REDUCED_MAX_ERROR, load_grey
from cxrnode.item import Item
from cxrnode.location import Location
from cxrnode.types import Reason
from cxrnode.workers import decode, scan
from engines.bundle import load_bundle
from engines.cpu import CpuEngine
from engines.preprocess import prepare, to_batch
from tests.support.make_dicom import chest, write

PROBABILITY_ERROR = 0.02  # as `make demo` states it


@pytest.mark.parametrize("syntax", ["explicit", "j2k", "j2k_lossy"])
def test_the_node_s_fast_way_gives_the_plain_way_s_tensor_and_answer(syntax: str, tmp_path: Path) -> None:
    bundle = load_bundle("default")
    shape = bundle.manifest.input
    ds = chest(2500, 2048, seed=5, syntax=syntax)
    grey = load_grey(ds, long_side=PREVIEW_LONG_SIDE, fast=False).pixels
    location = {"container": str(write(ds, tmp_path / "film")), "kind": "file", "offset": 0}
    film, toned = (decode(location, shape.model_copy(update={"equalise": e})).image for e in (False, shape.equalise))
    assert film is not None
    assert toned is not None
    difference = np.abs(film.pixels - prepare(grey, shape.rows, shape.columns))
    assert difference.mean() <= MEAN_ERROR
    assert difference.max() <= REDUCED_MAX_ERROR
    plain = prepare(grey, shape.rows, shape.columns, equalise=shape.equalise)
    engine = CpuEngine(bundle)
    engine.activate()
    output = engine.infer(to_batch([toned.pixels, plain]))
    assert output.class_index[0] == output.class_index[1]
    assert np.abs(output.probabilities[0] - output.probabilities[1]).max() <= PROBABILITY_ERROR


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "SOPInstanceUID"])
def test_a_file_that_was_replaced_since_it_was_scanned_is_no_picture_for_the_old_header(
    keyword: str, tmp_path: Path
) -> None:
    """Else one patient's pixels would be reported under another's name."""
    ds = chest(96, 80, seed=1)
    shape = load_bundle("default").manifest.input
    path = write(ds, tmp_path / "film")
    item = Item(path="film", at=Location(container=str(path)))
    (scanned,) = scan([item])
    assert scanned.header is not None
    assert decode(item.location(), shape, scanned.header.kept).image is not None
    setattr(ds, keyword, "1.2.3.4")
    write(ds, path)
    decoded = decode(item.location(), shape, scanned.header.kept)
    assert decoded.image is None
    assert decoded.rejection is not None
    assert decoded.rejection.reason is Reason.UNREADABLE_FILE
