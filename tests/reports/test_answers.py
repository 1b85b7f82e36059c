"""F1 and exact match of answers."""

from __future__ import annotations

import pytest

from reports.quality import answer_of, exact, f1, normalised


def test_what_does_not_count() -> None:
    assert normalised("  The  Mill, on a River! ") == "mill on river"
    assert exact("the Mill.", ["a mill"]) == 1


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [
        ("Ada Finch", ["Finch", "ada finch"], 1.0),
        ("it was Ada Finch", ["Ada Finch"], 2 * 2 / (4 + 2)),
        ("Finch Finch", ["Ada Finch"], 2 * 1 / (2 + 2)),
        ("nobody", ["Ada Finch"], 0.0),
        ("", ["Ada Finch"], 0.0),
        ("The", ["a"], 1.0),
        ("any", [], 0.0),
    ],
)
def test_f1_is_of_the_best_answer(answer: str, right: list[str], score: float) -> None:
    assert f1(answer, right) == pytest.approx(score)
    assert exact(answer, right) == float(score == 1)


def test_the_first_line_that_says_something_is_the_answer() -> None:
    assert answer_of("\n \n Ada Finch \nQuestion: who?") == "Ada Finch"
    assert answer_of(" \n") == ""
