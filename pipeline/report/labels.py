"""Words beside points, at that corner of each where there is room."""

from collections.abc import Sequence
from typing import Any, NamedTuple

SIZE = 8.0  # of the words, in typographic points, as all lengths here
WIDTH = 0.6  # of a letter, in sizes
GAP = 5.0  # from a point to its words
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # right or left, above or below


class Box(NamedTuple):
    """A rectangle."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """The area that it has in common with ``other``."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """Its area."""
        return self.overlap(self)


def corners(
    points: Sequence[tuple[float, float]], words: Sequence[str], room: Box
) -> list[tuple[int, int]]:
    """For each of ``points`` the corner of ``CORNERS`` where its ``words`` overlap least with all
    points and with the words before them, and lie in the ``room``."""
    taken = [Box(x - GAP, y - GAP, x + GAP, y + GAP) for x, y in points]
    chosen = []
    for point, text in zip(points, words, strict=True):
        boxes = {corner: _box(point, corner, text) for corner in CORNERS}
        costs = {corner: _cost(box, taken, room) for corner, box in boxes.items()}
        chosen.append(min(CORNERS, key=lambda corner: costs[corner]))
        taken.append(boxes[chosen[-1]])
    return chosen


def _cost(box: Box, taken: Sequence[Box], room: Box) -> float:
    """The area at which ``box`` lies over others and out of the room."""
    return sum(map(box.overlap, taken)) + box.area - box.overlap(room)


def _box(point: tuple[float, float], corner: tuple[int, int], text: str) -> Box:
    (x, y), (right, above) = point, corner
    ends = sorted((x + right * GAP, x + right * (GAP + WIDTH * SIZE * len(text))))
    levels = sorted((y + above * GAP, y + above * (GAP + SIZE)))
    return Box(ends[0], levels[0], ends[1], levels[1])


def label(axes: Any, points: Sequence[Any], words: Sequence[str], colours: Sequence[str]) -> None:
    """Write ``words`` in ``colours`` beside ``points`` of ``axes``, in which all else is drawn."""
    axes.figure.draw_without_rendering()  # so that it is known where everything lies
    scale = 72 / axes.figure.dpi
    places = [tuple(place) for place in axes.transData.transform(points) * scale]
    room = Box(*(axes.bbox.extents * scale))
    found = zip(points, words, colours, corners(places, words, room), strict=True)
    for point, text, colour, (right, above) in found:
        axes.annotate(
            text, point, (right * GAP, above * GAP), textcoords="offset points", fontsize=SIZE,
            color=colour, ha="left" if right > 0 else "right", va="bottom" if above > 0 else "top",
        )  # fmt: skip
