"""``bench rag --dataset``: what it reads, asks and scores."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lmcache_cli.bench.requests import read_dataset
from lmcache_cli.errors import MissingError, UserError
from reports.run_file import read_run
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.small_model import save_model
from workloads import Example

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent / "datasets"
MILL = "Who built the mill on the Orr?"


def test_passages_of_their_own_form() -> None:
    first, second = read_dataset(HERE / "ctxs.json")
    assert first.question == MILL and first.answers == ("Ada Finch", "Finch")
    assert first.passages[0].startswith("The harvest")
    assert first.passages[1] == "Mill\nThe mill on the Orr was built by Ada Finch in 1820."
    assert len(second.passages) == 1
    assert read_dataset(HERE / "ctxs.json", 1) == [first]


def test_musiques_own_form() -> None:
    passages = ("Mill\nThe mill was built by Ada Finch.", "Orr\nA river.")
    found = read_dataset(HERE / "musique.jsonl")
    assert found == [Example(MILL, passages, ("Ada Finch", "A. Finch"))]


def test_longbenchs_form() -> None:
    passages = ("Mill\nThe mill was built by Ada Finch.\n\nIt turned.", "Orr\nA river.")
    first, second = read_dataset(HERE / "longbench.jsonl")
    assert first == Example(MILL, passages, ("Ada Finch",))
    assert second.passages == ("One paragraph.", "Another.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"question": "q", "answers": ["a"]}\n', "example 0 of"),
        (None, "is no file"),
    ],
)
def test_other_files_are_refused(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_dataset(tmp_path / "x.jsonl")
    assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingError, match=r"lmcache-bench\[datasets\]"):
        read_dataset(HERE / "ctxs.json")


def test_answers_stand_beside_speed(tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "model", "llama", num_hidden_layers=4, max_position_embeddings=512
    )
    flags = ["--model", str(model), "--unverified", "--reuse", "off,blend", "--blend-ratio", "0,1"]
    flags += ["--dataset", str(HERE / "ctxs.json"), "--context-tokens", "300", "--warm"]
    flags += ["--chunk-tokens", "16", "--cpu-size", "64MiB", "--output-tokens", "4"]
    done = lmcache("bench", "rag", *flags, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in 2 of 2 of them an answer can be read" in done.stderr.replace("\n", " ")
    cells = json.loads(done.stdout)["cells"]
    assert [c["reuse"] for c in cells] == ["off", "blend", "blend"]
    for cell in cells:
        assert cell["quality"]["answers"] == 2 and 0 <= cell["quality"]["f1"] <= 1
        assert cell["context_tokens"] == 300 and not cell["unexpected_hits"]
    # Its own passages are warm, whatever other requests there are; the first prompt had to be cut.
    assert cells[1]["blend"]["blended_tokens"] > 0
    assert cells[2]["quality"] == cells[0]["quality"]
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, _ = read_run(path)
    assert {s.f1 is not None and s.exact in (0, 1) for s in samples} == {True}


def test_a_dataset_goes_with_rag_alone(tmp_path: Path) -> None:
    done = lmcache("bench", "--dataset", str(HERE / "ctxs.json"), "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and "workload rag alone" in done.stderr


def test_musique_itself() -> None:
    folder = os.environ.get("LMCACHE_DATASETS")
    if not folder:
        pytest.skip("LMCACHE_DATASETS does not name a folder with musique/musique_s.json")
    examples = read_dataset(Path(folder) / "musique" / "musique_s.json")
    assert len(examples) == 150 and {len(e.passages) for e in examples} == {10}
    assert all(e.question and e.answers for e in examples)
