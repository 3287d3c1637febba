"""The chart of a search: what lies where, and names that can be read."""

from __future__ import annotations

from itertools import pairwise

from quantlib.report.search_chart import HEIGHT, WIDTH, search_chart
from quantlib.search.outcome import Outcome, Point


def point(name: str, bits: float, kl: float) -> Point:
    return Point(name=name, bits=bits, bytes=int(1e6 * bits), kl=kl)


def outcome(**changes: object) -> Outcome:
    curve = [point("best", bits, 0.3 * 10 ** (4.2 - bits)) for bits in (4.2, 4.5, 5, 6, 8, 12, 16)]
    given = {
        "budget": "4.5 bits",
        "chosen": point("chosen", 4.5, 0.15),
        "curve": tuple(curve),
        "uniform": (point("W4A16 in groups of 64", 4.25, 0.31), point("W4A16:32", 4.5, 0.26)),
        "choices": (),
    }
    return Outcome.model_validate(given | changes)


def test_more_bits_lie_to_the_right_and_less_loss_below() -> None:
    chart = search_chart(outcome())
    assert chart is not None
    places = [tuple(map(float, each.split(","))) for each in chart.line.split()]
    assert places == sorted(places)
    assert [y for _, y in places] == sorted(y for _, y in places)
    dots = {dot.name: dot for dot in chart.dots}
    assert dots["chosen"].x == dots["W4A16:32"].x > dots["W4A16 in groups of 64"].x
    assert dots["chosen"].y > dots["W4A16:32"].y > dots["W4A16 in groups of 64"].y
    for dot in chart.dots:
        assert 0 < dot.x < WIDTH
        assert 0 < dot.y < HEIGHT


def test_what_lies_far_beyond_every_scheme_is_left_out() -> None:
    chart = search_chart(outcome())
    assert chart is not None
    assert len(chart.line.split()) == 3  # up to 1.15 * 4.5 bits


def test_names_do_not_cover_each_other() -> None:
    chart = search_chart(outcome())
    assert chart is not None
    heights = sorted(dot.name_y for dot in chart.dots)
    assert all(below - above >= 16.9 for above, below in pairwise(heights))


def test_nothing_is_drawn_where_nothing_is_lost() -> None:
    exact = point("chosen", 16, 0)
    assert search_chart(outcome(chosen=exact, curve=(exact,), uniform=())) is None
