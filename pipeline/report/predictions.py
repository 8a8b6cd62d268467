"""Predictions in words: a table, JSON and CSV, and how right they are."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipeline.report.tables import aligned

MOST_COLUMNS = 16  # classes of a confusion matrix that a terminal shows
MOST_ROWS = 20  # pairs of classes that are shown instead
SHOWN = 24  # characters of a class name in a table

Confusion = Mapping[tuple[str, str], int]  # how often a class (first) was taken for another


class Prediction(Protocol):
    """An image with its likeliest classes, see ``pipeline.export.prediction``."""

    @property
    def image(self) -> str: ...
    @property
    def label(self) -> str | None: ...
    @property
    def top(self) -> tuple[tuple[str, float], ...]: ...


def table(images: Sequence[Prediction], confusion: Confusion) -> str:
    """A row for each image with its classes and their probabilities in per cent, and below what
    ``judgement`` says."""
    rows = [["image", "class", "%", *_heads(images)]]
    rows += [_row(each, len(rows[0])) for each in images]
    parts = [aligned(rows)] if images else []
    return "\n\n".join([*parts, *judgement(confusion)])


def _heads(images: Sequence[Prediction]) -> list[str]:
    places = max((len(each.top) for each in images), default=1)
    return [word for place in range(2, places + 1) for word in (f"{place}.", "%")]


def _row(each: Prediction, columns: int) -> list[str]:
    cells = [word for name, share in each.top for word in (_short(name), f"{share:.2f}")]
    return [each.image, *cells, *[""] * (columns - 1 - len(cells))]


def judgement(confusion: Confusion) -> list[str]:
    """Of images with labels, in parts: the accuracy of all, that of each class, and the confusion
    matrix, or of many classes the pairs that are confused most; nothing where none has a label."""
    if not confusion:
        return []
    accuracy = accuracies(confusion)
    rows = [["class", "images", "right", "top-1 %"]]
    rows += [[_short(name), *values] for name, values in _by_class(confusion).items()]
    line = f"top-1 {accuracy['top1']:.2f} % of {accuracy['images']} images"
    return [aligned(rows), *_matrix(confusion), line]


def _by_class(confusion: Confusion) -> dict[str, list[str]]:
    images, right = _sums(confusion)
    return {
        name: [str(count), str(right[name]), f"{100 * right[name] / count:.2f}"]
        for name, count in sorted(images.items())
    }


def _sums(confusion: Confusion) -> tuple[Counter[str], Counter[str]]:
    """The images of each class, and how many of them were taken for it."""
    images, right = Counter[str](), Counter[str]()
    for (label, guess), count in confusion.items():
        images[label] += count
        right[label] += count * (label == guess)
    return images, right


def _matrix(confusion: Confusion) -> list[str]:
    labels = sorted({label for label, _ in confusion})
    guesses = sorted({*labels} | {guess for _, guess in confusion})
    if len(guesses) <= MOST_COLUMNS:
        rows = [["is \\ taken for", *map(_short, guesses)]]
        for label in labels:
            counts = [confusion.get((label, guess), 0) for guess in guesses]
            rows.append([_short(label), *(str(count or ".") for count in counts)])
        return [aligned(rows)]
    wrong = Counter({pair: n for pair, n in confusion.items() if pair[0] != pair[1]})
    pairs = wrong.most_common(MOST_ROWS)
    rows = [["is", "taken for", "images"], *([_short(a), _short(b), str(n)] for (a, b), n in pairs)]
    return [aligned(rows)] if pairs else []


def accuracies(confusion: Confusion) -> dict[str, Any]:
    """Over all images with labels: ``images``, and ``top1`` in per cent."""
    images, right = _sums(confusion)
    total = images.total()
    return {"images": total, "top1": 100 * right.total() / total}


def in_json(
    images: Sequence[Prediction], bad: Sequence[tuple[str, str]], confusion: Confusion
) -> str:
    """One JSON object: ``images``, ``bad`` ones, and of those with labels ``accuracy``,
    ``classes`` and ``confusion``."""
    found: dict[str, Any] = {"images": [_plain(each) for each in images]}
    found["bad"] = [{"image": name, "reason": why} for name, why in bad]
    if confusion:
        counts, right = _sums(confusion)
        found["accuracy"] = accuracies(confusion)
        found["classes"] = {
            name: {"images": counts[name], "top1": 100 * right[name] / counts[name]}
            for name in sorted(counts)
        }
        found["confusion"] = [[*pair, count] for pair, count in sorted(confusion.items())]
    return json.dumps(found, allow_nan=False)


def _plain(each: Prediction) -> dict[str, Any]:
    top = [{"class": name, "probability": share} for name, share in each.top]
    return {"image": each.image, "label": each.label, "top": top}


def in_csv(images: Sequence[Prediction]) -> str:
    """CSV: a row for each image, with its label and its classes, each before its probability."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    places = range(1, max((len(each.top) for each in images), default=1) + 1)
    heads = [word for place in places for word in (f"class{place}", f"probability{place}")]
    writer.writerow(["image", "label", *heads])
    for each in images:
        writer.writerow(
            [each.image, each.label or "", *(cell for pair in each.top for cell in pair)]
        )
    return file.getvalue().removesuffix("\n")


def _short(name: str) -> str:
    """A class name as a cell: printable, and not longer than ``SHOWN``."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
