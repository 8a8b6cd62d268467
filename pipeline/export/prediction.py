"""The classes of many images, and how right they are where folders say the classes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.export.images import Bad, Found, class_folders, label_of, prepare
from pipeline.export.predictor import Predictor
from pipeline.export.program import Array
from pipeline.run.classes import shown
from pipeline.run.console import ProgressBar, logger

TOP = 5  # classes that are named for an image
BATCH = 16  # images that go through a network at once


@dataclass(frozen=True)
class Prediction:
    """An image's file, the class that its folder says, if any, and its likeliest classes with their
    probabilities in per cent, the first of them first."""

    image: str
    label: str | None
    top: tuple[tuple[str, float], ...]


@dataclass
class Predictions:
    """What was predicted, the files that could not be read with the reason, and for images with a
    label how often each class was taken for which."""

    images: list[Prediction] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)


def predict(predictor: Predictor, images: Sequence[Found]) -> Predictions:
    """What ``predictor`` says of ``images``. Those that cannot be read are noted and passed over,
    each with a warning."""
    names = _names(predictor, images)
    _tell_of_others(names, images)
    done = Predictions()
    with ProgressBar("images", len(images)) as bar:
        for batch in _batches(predictor, images, done, bar):
            kept, pixels = [each for each, _ in batch], np.stack([array for _, array in batch])
            for image, logits in zip(kept, predictor.logits(pixels), strict=True):
                _add(done, image, names, logits)
    return done


def _names(predictor: Predictor, images: Sequence[Found]) -> tuple[str, ...]:
    """The names of the classes. Where the network has none and the images lie in as many folders
    as it has classes, these are taken in order, with a warning; else they are numbers."""
    if predictor.classes is not None:
        return predictor.classes
    folders = class_folders(images)
    if len(folders) != predictor.num_classes:
        return tuple(map(str, range(predictor.num_classes)))
    logger.warning("the network names no classes: the folders are taken in order")
    return tuple(folders)


def _tell_of_others(names: Sequence[str], images: Sequence[Found]) -> None:
    """Say how many images lie in folders that are none of the classes, ``names``."""
    others = [each for each in images if each.folders and label_of(each, names) is None]
    if others:
        logger.warning(
            "%d of %d images are not judged: their folders (%s) are no classes of the network (%s)",
            len(others), len(images), shown(class_folders(others)), shown(names),
        )  # fmt: skip


def _batches(
    predictor: Predictor, images: Sequence[Found], done: Predictions, bar: ProgressBar
) -> Iterator[list[tuple[Found, Array]]]:
    batch: list[tuple[Found, Array]] = []
    for image in images:
        try:
            batch.append((image, prepare(image.path, predictor.about.images)))
        except Bad as error:
            logger.warning("%s is left out: %s", image.path, error)
            done.bad.append((str(image.path), str(error)))
        if len(batch) == BATCH:
            yield batch
            batch = []
        bar.advance()
    if batch:
        yield batch


def _add(done: Predictions, image: Found, names: Sequence[str], logits: Array) -> None:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    shares *= 100 / shares.sum()
    order = np.argsort(-shares, kind="stable")[:TOP]
    top = tuple((names[place], float(shares[place])) for place in order)
    label = label_of(image, names)
    done.images.append(Prediction(str(image.path), label, top))
    if label is not None:
        done.confusion[label, top[0][0]] += 1
