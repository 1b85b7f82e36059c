"""What every workload promises, and what each is made for."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workloads import (
    WORKLOADS,
    Corpus,
    CorpusError,
    FolderCorpus,
    GeneratedCorpus,
    Request,
    Settings,
    generate,
)
from workloads.request import SEGMENT_KINDS

Encode = Callable[[str], list[int]]
ROOT = Path(__file__).parents[2]
BOS = 1
SMALL = Settings(
    context_tokens=300,
    question_tokens=40,
    passage_tokens=90,
    corpus_passages=12,
    system_tokens=50,
    reply_tokens=44,
    result_tokens=70,
)
everywhere = pytest.mark.parametrize("name", WORKLOADS)


@pytest.fixture
def make(encode: Encode) -> Callable[..., list[Request]]:
    def make(name: str, bos: int | None = BOS, seed: int = 0, **knobs: Any) -> list[Request]:
        settings = replace(SMALL, seed=seed, **knobs)
        return generate(name, settings, GeneratedCorpus(0), encode, bos)

    return make


Make = Callable[..., list[Request]]


def digest(requests: Sequence[Request]) -> str:
    total = hashlib.sha256()
    for r in requests:
        total.update(repr((r.id, r.session, r.arrival_s, r.segments, r.max_tokens)).encode())
        total.update(r.token_ids.astype("<i4").tobytes())
    return total.hexdigest()


def kinds(request: Request) -> list[tuple[str, int]]:
    return [(segment.kind, segment.end - segment.start) for segment in request.segments]


def starts_with(request: Request, other: Request) -> bool:
    return np.array_equal(request.token_ids[: len(other.token_ids)], other.token_ids)


@everywhere
@pytest.mark.parametrize("bos", [None, BOS])
def test_requests_are_whole(name: str, bos: int | None, make: Make) -> None:
    requests = make(name, bos=bos, rate=2.0)
    assert len({request.id for request in requests}) == len(requests)
    for request in requests:
        ids = request.token_ids
        assert ids.dtype == np.int32 and ids.ndim == 1 and not ids.flags.writeable
        edges = [0, *(segment.end for segment in request.segments)]
        assert [segment.start for segment in request.segments] == edges[:-1]
        assert edges[-1] == len(ids)
        assert all(size > 0 and kind in SEGMENT_KINDS for kind, size in kinds(request))
        assert request.max_tokens == SMALL.output_tokens
        assert (ids[0] == BOS) == (bos is not None)
        assert BOS not in ids[1:]
    times = [request.arrival_s for request in requests]
    assert times == sorted(times) and times[0] > 0


@everywhere
def test_bos_takes_a_place_and_changes_no_length(name: str, make: Make) -> None:
    with_bos, without = make(name), make(name, bos=None)
    assert [kinds(r) for r in with_bos] == [kinds(r) for r in without]


@everywhere
def test_same_seed_same_requests(name: str, make: Make) -> None:
    assert digest(make(name, rate=1.0)) == digest(make(name, rate=1.0))
    assert digest(make(name)) != digest(make(name, seed=1))


@everywhere
def test_all_prompts_differ(name: str, make: Make) -> None:
    requests = make(name, requests=24)
    assert len({request.token_ids.tobytes() for request in requests}) == 24


@everywhere
def test_a_rate_only_sets_times(name: str, make: Make) -> None:
    closed, opened = make(name), make(name, rate=3.0)
    assert all(request.arrival_s == 0 for request in closed)
    assert [r.token_ids.tolist() for r in closed] == [r.token_ids.tolist() for r in opened]


@everywhere
@pytest.mark.parametrize("count", [1, 5, 37])
def test_requests_overrides_the_number(name: str, count: int, make: Make) -> None:
    requests = make(name, requests=count)
    assert len(requests) == count
    fewer = max(1, count // 2)
    assert digest(make(name, requests=fewer)) == digest(requests[:fewer]), "more only adds"


@everywhere
def test_the_least_settings_work(name: str, encode: Encode) -> None:
    least = Settings(
        context_tokens=2,
        documents=1,
        questions=1,
        question_tokens=1,
        output_tokens=1,
        passages=1,
        passage_tokens=1,
        corpus_passages=1,
        system_tokens=1,
        sessions=1,
        rounds=2,
        reply_tokens=1,
        result_tokens=1,
    )
    for bos in (None, BOS):
        for request in generate(name, least, GeneratedCorpus(0), encode, bos):
            assert 2 <= len(request.token_ids) <= 4


_PRINT_DIGESTS = """
import hashlib, zlib
from workloads import WORKLOADS, GeneratedCorpus, Settings, generate

settings = Settings(context_tokens=200, passage_tokens=60, seed=3, rate=1.0)
for name in WORKLOADS:
    total = hashlib.sha256()
    encode = lambda text: [zlib.crc32(word.encode()) >> 1 for word in text.split()]
    for r in generate(name, settings, GeneratedCorpus(3), encode, 1):
        total.update(repr((r.id, r.session, r.arrival_s, r.segments)).encode())
        total.update(r.token_ids.tobytes())
    print(name, total.hexdigest())
"""


def test_no_salt_of_the_process_gets_in() -> None:
    outputs = []
    for salt in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _PRINT_DIGESTS],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": salt},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == len(WORKLOADS)


def test_an_unknown_name_lists_the_known(encode: Encode) -> None:
    with pytest.raises(ValueError, match=r"'poetry' .* long-context, rag, chat, agent, random"):
        generate("poetry", SMALL, GeneratedCorpus(), encode)


def test_long_context_asks_the_documents_in_turn(make: Make) -> None:
    requests = make("long-context", documents=3, questions=2)
    assert [r.id for r in requests] == ["d0q0", "d1q0", "d2q0", "d0q1", "d1q1", "d2q1"]
    assert [r.session for r in requests] == ["d0", "d1", "d2"] * 2
    assert all(kinds(r) == [("document", 300), ("question", 40)] for r in requests)
    documents = [tuple(r.token_ids[:300]) for r in requests]
    assert documents[:3] == documents[3:]
    assert len({document[:17] for document in documents}) == 3
    questions = [tuple(r.token_ids[300:308]) for r in requests]
    assert questions[0] != questions[3], "a document's questions differ from their start"


def test_even_short_questions_differ(make: Make) -> None:
    requests = make("long-context", documents=1, questions=9, question_tokens=5)
    assert len({request.token_ids.tobytes() for request in requests}) == 9


def test_a_document_is_tokenised_once(
    listening: tuple[Encode, list[str]],
) -> None:
    encode, heard = listening
    generate("long-context", replace(SMALL, questions=20), GeneratedCorpus(0), encode)
    texts = [text.strip() for text in heard if len(text) > 200]
    assert len(texts) == len(set(texts))
    assert sum(map(len, texts)) < 4 * 300 * 12, "no more text than the documents need"


def test_rag_takes_popular_passages_more_often(make: Make) -> None:
    requests = make("rag", requests=200, zipf=1.2)
    times: Counter[bytes] = Counter()
    for request in requests:
        assert kinds(request) == [("system", 50), *[("passage", 90)] * 4, ("question", 40)]
        passages = [request.token_ids[s.start : s.end].tobytes() for s in request.segments[1:5]]
        assert len(set(passages)) == 4, "no passage twice in a prompt"
        times.update(passages)
    assert len({request.token_ids[:50].tobytes() for request in requests}) == 1
    assert len(times) == 12
    [most, *_, least] = (n for _, n in times.most_common())
    assert most > 4 * least
    even = Counter(
        r.token_ids[s.start : s.end].tobytes()
        for r in make("rag", requests=200, zipf=0.0)
        for s in r.segments[1:5]
    )
    assert max(even.values()) < 1.8 * min(even.values())


def test_in_stable_order_the_most_popular_passages_come_first(make: Make) -> None:
    def passages(order: str) -> list[list[bytes]]:
        requests = make("rag", requests=60, zipf=1.2, order=order)
        return [[r.token_ids[s.start : s.end].tobytes() for s in r.segments[1:5]] for r in requests]

    drawn, stable = passages("retrieved"), passages("stable")
    assert drawn != stable
    assert [set(some) for some in drawn] == [set(some) for some in stable]
    # Of any two passages, the same one always comes first.
    pairs = {(a, b) for some in stable for i, a in enumerate(some) for b in some[i + 1 :]}
    assert not any((b, a) in pairs for a, b in pairs)
    assert len({some[0] for some in stable}) < len({some[0] for some in drawn})


@pytest.mark.parametrize("name", ["chat", "agent"])
def test_sessions_take_turns_and_later_ones_follow(name: str, make: Make) -> None:
    requests = make(name, sessions=2, rounds=3, requests=9)
    order = ["s0r0", "s1r0", "s0r1", "s1r1", "s0r2", "s1r2", "s2r0", "s3r0", "s2r1"]
    assert [r.id for r in requests] == order
    assert [r.session for r in requests] == [name[:2] for name in order]


@pytest.mark.parametrize("name", ["chat", "agent"])
def test_a_prompt_continues_the_one_before(name: str, make: Make) -> None:
    requests = make(name, sessions=3, rounds=4)
    by_session = [[r for r in requests if r.session == f"s{i}"] for i in range(3)]
    for session in by_session:
        assert len(session) == 4
        assert all(starts_with(b, a) for a, b in pairwise(session))
    for a, b in pairwise(by_session):
        assert np.array_equal(a[0].token_ids[:50], b[0].token_ids[:50]), "one system prompt"
        assert not np.array_equal(a[0].token_ids[50:], b[0].token_ids[50:])


def test_chat_grows_by_a_reply_and_a_turn(make: Make) -> None:
    last = make("chat", sessions=1, rounds=3)[-1]
    said = [("history", 40), ("history", 44)] * 2
    assert kinds(last) == [("system", 50), *said, ("question", 40)]


def test_agent_grows_by_a_call_and_a_result(make: Make) -> None:
    last = make("agent", sessions=1, rounds=3)[-1]
    done = [("history", 44), ("tool", 70)] * 2
    assert kinds(last) == [("system", 50), ("question", 40), *done]


def test_random_prompts_share_no_chunk(make: Make) -> None:
    requests = make("random", requests=40, context_tokens=320)
    assert all(kinds(r) == [("document", 320)] for r in requests)
    starts = {r.token_ids[:16].tobytes() for r in requests}
    assert len(starts) == 40
    chunks = [r.token_ids[i : i + 16].tobytes() for r in requests for i in range(0, 320, 16)]
    assert len(set(chunks)) == len(chunks)


def test_random_prompts_differ_at_once_even_if_the_texts_begin_alike(
    tmp_path: Path, encode: Encode
) -> None:
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("Copyright by the same author, as always. " * 40)
    corpus: Corpus = FolderCorpus(tmp_path)
    settings = replace(SMALL, requests=5, context_tokens=60)
    requests = generate("random", settings, corpus, encode, BOS)
    assert len({int(r.token_ids[1]) for r in requests}) == 5


@everywhere
def test_too_little_text_is_said(name: str, tmp_path: Path, encode: Encode) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Only this sentence, which is soon used up.")
    with pytest.raises(CorpusError, match=r"short\.txt: no text left after [\d,]+ tokens"):
        generate(name, SMALL, FolderCorpus(file), encode)


@everywhere
def test_real_text_works_too(name: str, tmp_path: Path, encode: Encode) -> None:
    text = "\n\n".join(GeneratedCorpus(9).passage(i) for i in range(400))
    (tmp_path / "text.md").write_text(text)
    requests = generate(name, SMALL, FolderCorpus(tmp_path), encode, BOS)
    assert digest(requests) == digest(generate(name, SMALL, FolderCorpus(tmp_path), encode, BOS))
