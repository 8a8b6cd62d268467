"""Words beside points: where there is room."""

from pipeline.report.labels import CORNERS, Box, corners

ROOM = Box(0, 0, 500, 300)
RIGHT_ABOVE, RIGHT_BELOW, LEFT_ABOVE, LEFT_BELOW = CORNERS


def test_right_and_above_where_nothing_is_in_the_way():
    assert corners([(100, 100), (300, 200)], ["one", "two"], ROOM) == [RIGHT_ABOVE] * 2


def test_no_words_lie_on_a_point():
    assert corners([(100, 100), (115, 110)], ["one", "two"], ROOM)[0] == RIGHT_BELOW


def test_no_words_lie_on_others():
    first, second = corners([(100, 100), (100, 112)], ["one", "two"], ROOM)
    assert (first, second) != (RIGHT_ABOVE, RIGHT_BELOW) and second == RIGHT_ABOVE


def test_all_words_are_in_the_room():
    points = [(10, 290), (490, 290), (490, 10), (10, 10)]
    found = corners(points, ["a long word"] * 4, ROOM)
    assert found == [RIGHT_BELOW, LEFT_BELOW, LEFT_ABOVE, RIGHT_ABOVE]


def test_areas():
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 3, 4)) == 1
    assert Box(0, 0, 2, 2).overlap(Box(3, 0, 4, 2)) == 0 and Box(0, 0, 2, 3).area == 6
