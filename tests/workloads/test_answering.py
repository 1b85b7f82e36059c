"""Questions of a data set as requests."""

from __future__ import annotations

import numpy as np
import pytest

from workloads import Example, Request, Settings, answering
from workloads.answering import relevance

MILL = "The mill on the Orr was built by Ada Finch."
RIVER = "The Orr is a river of some length."
NOISE = "Nothing of all that grew here for years and years."
EXAMPLE = Example("Who built the mill on the Orr?", (NOISE, MILL, RIVER), ("Ada Finch",))


def encode(text: str) -> list[int]:
    return list(text.encode())


def texts(request: Request) -> list[str]:
    parts = [request.token_ids[s.start : s.end] for s in request.segments]
    return [bytes(part.astype(np.uint8)).decode() for part in parts]


def ask(context: int, *examples: Example) -> tuple[list[str], int, int]:
    settings = Settings(context_tokens=context)
    [request], cut = answering(examples or [EXAMPLE], settings, encode, None)
    assert len(request.token_ids) <= context
    return texts(request)[1:-1], cut.kept, cut.answerable


def test_all_passages_in_their_order_if_they_fit() -> None:
    kept, count, answerable = ask(1000)
    assert kept == [f"\n\n{text}" for text in EXAMPLE.passages]
    assert (count, answerable) == (3, 1)


def test_what_shares_the_least_with_the_question_goes_first() -> None:
    whole = len(texts(answering([EXAMPLE], Settings(), encode, None)[0][0])[0])
    question = len(f"\n\nQuestion: {EXAMPLE.question}\nAnswer:")
    room = whole + question
    assert ask(room + len(MILL) + len(RIVER) + 4)[0] == [f"\n\n{MILL}", f"\n\n{RIVER}"]
    assert ask(room + len(MILL) + 2)[0] == [f"\n\n{MILL}"]
    kept, _, answerable = ask(room + 10)
    assert kept == [f"\n\n{MILL}"[:10]] and answerable == 1


def test_answers_are_not_looked_at() -> None:
    other = Example(EXAMPLE.question, EXAMPLE.passages, ("years and years",))
    assert ask(250, other)[0] == ask(250)[0]


def test_rare_words_count_more() -> None:
    both = relevance("the Orr", ["the one", "the Orr", "the other"])
    assert both[1] > both[0] == both[2] > 0


def test_answers_go_with_the_request() -> None:
    requests, cut = answering([EXAMPLE] * 3, Settings(requests=2), encode, 7)
    assert [r.answers for r in requests] == [("Ada Finch",)] * 2 and cut.prompts == 2
    assert requests[0].token_ids[0] == 7


@pytest.mark.parametrize(("examples", "context"), [([], 100), ([EXAMPLE], 50)])
def test_what_makes_no_prompt_is_refused(examples: list[Example], context: int) -> None:
    with pytest.raises(ValueError, match=r"examples|no room"):
        answering(examples, Settings(context_tokens=context), encode, None)


def test_a_chat_template_goes_around_the_turn() -> None:
    requests, _ = answering([EXAMPLE], Settings(context_tokens=300), encode, None, ("<u> ", " <a>"))
    plain, _ = answering([EXAMPLE], Settings(context_tokens=300), encode, None)
    ids = requests[0].token_ids.tolist()
    assert ids[: len(encode("<u>"))] == list(encode("<u>"))
    assert ids[-len(encode("<a>")) :] == list(encode("<a>"))
    assert [s.kind for s in requests[0].segments] == [s.kind for s in plain[0].segments]
