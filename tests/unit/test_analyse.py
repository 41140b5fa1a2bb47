"""One bad image never fails its batch: the batch is halved until the image at fault stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxrnode.analyse import AnalyseOptions, Analyser
from cxrnode.inference import infer_bisecting, inference
from cxrnode.intake_archive import take_in
from cxrnode.pool import Pool
from cxrnode.report.context import ReportContext
from cxrnode.store.database import Database
from cxrnode.store.outbox import Outbox
from cxrnode.store.queue import Queue
from cxrnode.store.studies import Studies
from cxrnode.workers import Output
from engines.base import EngineError, EngineOutput, FloatArray
from engines.bundle import load_bundle
from engines.check import UnusableEngineError
from engines.cpu import CpuEngine
from engines.preprocess import to_batch
from tests.support.make_dicom import chest, phantom, write


class Picky(CpuEngine):
    """The real engine, but for batches that hold an image it was told to fail on."""

    poisoned: frozenset[bytes] = frozenset()
    calls = 0

    def infer(self, batch: FloatArray) -> EngineOutput:
        self.calls += 1
        if any(image[0].tobytes() in self.poisoned for image in batch):
            raise EngineError("poisoned")
        return super().infer(batch)


@pytest.fixture(scope="module")
def engine() -> Iterator[Picky]:
    engine = Picky(load_bundle("default"))
    engine.activate()
    yield engine
    engine.deactivate()


def image(seed: int) -> FloatArray:
    side = load_bundle("default").manifest.input.rows
    return np.ascontiguousarray(phantom(side, side, seed))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.sets(st.integers(0, 6), max_size=4))
def test_exactly_the_bad_images_fail_and_the_others_keep_their_answers(engine: Picky, bad: set[int]) -> None:
    batch = [image(seed) for seed in range(7)]
    engine.poisoned = frozenset()
    whole = infer_bisecting(engine, batch)
    engine.poisoned = frozenset(to_batch([batch[i]])[0, 0].tobytes() for i in bad)
    answers = infer_bisecting(engine, batch)
    assert [a.prediction is None for a in answers] == [i in bad for i in range(7)]
    for alone, together in zip(answers, whole, strict=True):
        if alone.prediction and together.prediction:
            assert alone.prediction.probabilities == pytest.approx(together.prediction.probabilities, abs=2e-6)
        else:
            assert "poisoned" in alone.error


def test_a_good_batch_is_one_call(engine: Picky) -> None:
    engine.poisoned, engine.calls = frozenset(), 0
    infer_bisecting(engine, [image(seed) for seed in range(5)])
    assert engine.calls == 1


def test_an_engine_that_is_lost_is_nobodys_fault(engine: Picky, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is marked as failed, and no smaller batch is tried."""
    calls = []

    def lost(batch: FloatArray) -> EngineOutput:
        calls.append(len(batch))
        raise UnusableEngineError("context lost")

    monkeypatch.setattr(engine, "infer", lost)
    with pytest.raises(UnusableEngineError):
        infer_bisecting(engine, [image(seed) for seed in range(5)])
    assert calls == [5]


def test_what_is_not_finite_is_no_answer(engine: Picky) -> None:
    engine.poisoned = frozenset()
    sick = image(0)
    sick[0, 0] = np.nan
    (answer,) = infer_bisecting(engine, [sick])
    assert answer.prediction is None
    assert "not finite" in answer.error


def test_the_queue_is_run_dry_even_where_everything_in_hand_was_rejected(tmp_path: Path) -> None:
    """A window of one, and films that are rejected and whose study is not complete: nothing is left in hand."""
    for n in range(4):
        ids = ("1.2.826.0.1.9", "1.2.826.0.1.9.1", f"1.2.826.0.1.9.1.{n + 1}")
        write(chest(128, 128, seed=n, view="LL", uids=ids), tmp_path / "in" / f"{n}.dcm")
    database, queue, pool = Database(tmp_path / "q.sqlite"), Queue("test"), Pool(1, preload="cxrnode.workers")
    take_in(
        [tmp_path / "in"], out=tmp_path, spool=tmp_path / "spool", database=database, queue=queue, pool=pool,
        now=1.0, on_scanned=lambda _: None,
    )  # fmt: skip
    context = ReportContext(bundle=load_bundle("default"), analysed_at=datetime.now(UTC), software_version="0")
    with inference(Picky(load_bundle("default"))) as active:
        Analyser(
            database=database, queue=queue, studies=Studies("test"), outbox=Outbox("test"), pool=pool,
            inference=active, context=context, output=Output(root=tmp_path),
            options=AnalyseOptions(batch_size=4, window=1), on_done=lambda _: None, on_reported=lambda _: None,
        ).run()  # fmt: skip
    pool.close()
    with database.begin() as c:
        assert queue.count_waiting(c) == 0
    database.close()
    assert len(list((tmp_path / "dicom").rglob("sr-*.dcm"))) == 1
