"""The decoded cache holds what serving would see, whole or not at all."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

import training.cache as module
from engines.bundle import InputShape
from engines.preprocess import prepare
from tests.support.processes import at_once
from tests.support.small_disk import small_disk
from training.cache import decoded
from training.datasets import Part, Sample, read_grey
from training.recipe import RecipeError
from training.transforms import to_grey

SHAPE = InputShape(channels=3, rows=24, columns=20)


def make_images(data: Path, n: int = 6) -> list[Sample]:
    (data / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(n):
        cv2.imwrite(str(data / "images" / f"{k}.png"), rng.integers(0, 255, (60 + k, 50), np.uint8))
    return samples_of(n)


def served(data: Path, sample: Sample) -> npt.NDArray[np.float32]:
    image = cv2.imread(str(data / "images" / sample.image), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return prepare(to_grey(np.asarray(image, np.uint8)), SHAPE.rows, SHAPE.columns)


def test_it_holds_servings_preprocessing_to_the_rounding_of_bytes(tmp_path: Path) -> None:
    samples = make_images(tmp_path)
    images = decoded(tmp_path, samples, SHAPE, tmp_path / "cache")
    assert images.shape == (6, 24, 20)
    for image, sample in zip(images, samples, strict=True):
        assert np.abs(to_grey(image) - served(tmp_path, sample)).max() <= 0.5 / 255 + 1e-6


def test_images_are_decoded_once_and_a_changed_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_images(tmp_path)
    first = decoded(tmp_path, samples, SHAPE, tmp_path / "cache")
    with monkeypatch.context() as m:
        m.delattr(module, "_decode")
        np.testing.assert_array_equal(decoded(tmp_path, samples, SHAPE, tmp_path / "cache"), first)
    cv2.imwrite(str(tmp_path / "images" / "2.png"), np.full((60, 50), 7, np.uint8))
    again = decoded(tmp_path, samples, SHAPE, tmp_path / "cache")
    assert (again[2] == 7).all()
    np.testing.assert_array_equal(again[3:], first[3:])
    other = InputShape(channels=3, rows=16, columns=16)
    assert decoded(tmp_path, samples, other, tmp_path / "cache").shape == (6, 16, 16)


class KilledError(BaseException):
    """Stands for the signal."""


def test_a_killed_decode_leaves_nothing_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_images(tmp_path)

    def killed_at_the_fourth(data: Path, sample: Sample) -> npt.NDArray[np.float32]:
        if sample.image == "3.png":
            raise KilledError
        return read_grey(data, sample)

    with monkeypatch.context() as m:
        m.setattr(module, "read_grey", killed_at_the_fourth)
        with pytest.raises(KilledError):
            decoded(tmp_path, samples, SHAPE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache" / "left.npy.1.part").write_bytes(b"of a process that could not tidy up")
    assert (decoded(tmp_path, samples, SHAPE, tmp_path / "cache")[3] > 0).any()


@pytest.mark.parametrize("kept", [0, 60, 500])
def test_a_damaged_file_is_made_again(tmp_path: Path, kept: int) -> None:
    samples = make_images(tmp_path)
    first = np.array(decoded(tmp_path, samples, SHAPE, tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:kept])
    np.testing.assert_array_equal(decoded(tmp_path, samples, SHAPE, tmp_path / "cache"), first)


def samples_of(n: int) -> list[Sample]:
    return [Sample(image=f"{k}.png", label="", source="", group="", age=None, part=Part.TRAIN) for k in range(n)]


def decode_there(data: Path | str, _: int) -> int:
    return int(decoded(Path(data), samples_of(200), SHAPE, Path(data) / "cache").sum(dtype=np.int64))


@pytest.mark.slow  # three interpreters import everything
def test_processes_that_decode_at_once_see_the_same(tmp_path: Path) -> None:
    make_images(tmp_path, 200)
    sums = at_once(decode_there, tmp_path)
    assert len(set(sums)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path: Path) -> None:
    samples = make_images(tmp_path)
    whole = (tmp_path / "images" / "0.png").read_bytes()
    for name, content in {"0.png": whole[: len(whole) // 2], "1.png": b"", "2.png": b"junk", "3.png": None}.items():
        path = tmp_path / "images" / name
        path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"4 of 6 images cannot be used: .*0\.png \(no image.*; and 1 more"):
        decoded(tmp_path, samples, SHAPE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_half_a_jpeg_is_no_image(tmp_path: Path) -> None:
    """OpenCV would paint the other half grey."""
    samples = make_images(tmp_path, 1)
    code = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (60, 50), np.uint8))[1].tobytes()
    (tmp_path / "images" / "0.png").write_bytes(code[: len(code) * 3 // 4])
    with pytest.raises(RecipeError, match="cut off"):
        decoded(tmp_path, samples, SHAPE, tmp_path / "cache")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_size_limit_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    samples = make_images(tmp_path)
    with file_size_limit(1024), pytest.raises(RecipeError, match=r"cannot write .*: make room"):
        decoded(tmp_path, samples, SHAPE, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    assert len(decoded(tmp_path, samples, SHAPE, tmp_path / "cache")) == 6


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """A write to mapped memory that finds no room would end the process."""
    samples, disk = make_images(tmp_path), tmp_path / "small"
    with small_disk(disk, "size=128k"):
        with pytest.raises(RecipeError, match=r"cannot write .*No space left"):
            decoded(tmp_path, samples * 100, SHAPE, disk)
        assert not list(disk.iterdir())
        assert len(decoded(tmp_path, samples, SHAPE, disk)) == 6
