"""The user's own text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads import CorpusError, FolderCorpus
from workloads.text import _cut


def read(path: Path) -> list[str]:
    corpus = FolderCorpus(path)
    found = list(corpus.passages())
    assert list(corpus.passages()) == found, "every reading starts anew"
    assert len(corpus) == len(found)
    return found


def test_a_file_gives_its_paragraphs_together(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("\n\nOne.\nStill one.\n\n \n\nTwo.\n")
    assert read(file) == ["One.\nStill one.\n\nTwo."]


def test_passages_end_at_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}: " + "word " * 99 + "end." for i in range(7)]
    file = tmp_path / "a.md"
    file.write_text("\n\n".join(paragraphs))
    found = read(file)
    assert found == ["\n\n".join(paragraphs[i : i + 2]) for i in range(0, 7, 2)]


def test_a_long_paragraph_is_cut_between_sentences(tmp_path: Path) -> None:
    sentences = [f"This is sentence number {i} of a paragraph without end." for i in range(200)]
    file = tmp_path / "a.rst"
    file.write_text(" ".join(sentences))
    found = read(file)
    assert len(found) > 5
    assert all(passage.endswith("end.") and len(passage) <= 1500 for passage in found)
    assert " ".join(found) == " ".join(sentences)


WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1)
SPACE = st.sampled_from([" ", "\n", "\n\n", ". ", " \n \n"])


@given(st.lists(st.tuples(WORD, SPACE), min_size=1), st.integers(1, 60))
def test_cutting_loses_no_character_but_space(pairs: list[tuple[str, str]], times: int) -> None:
    text = "".join(word + space for word, space in pairs) * times
    found = list(_cut(text))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(passage.strip() and len(passage) <= 1500 for passage in found)


def test_a_word_too_long_for_a_passage_is_cut_anyway() -> None:
    assert [len(passage) for passage in _cut("x" * 3100)] == [1500, 1500, 100]
    assert list(_cut(" " * 5000 + "x")) == ["x"]


def test_a_folder_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    files = {
        "b.txt": "second",
        "a/z.md": "first",
        "c/d/e.RST": "third",
        "c/x.py": "no text",
        ".git/hidden.txt": "hidden",
        "c/.hidden.md": "hidden",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "folder.txt").mkdir()
    assert read(tmp_path) == ["first", "second", "third"]


def test_a_hidden_folder_above_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "texts").mkdir(parents=True)
    (tmp_path / ".cache" / "texts" / "a.txt").write_text("seen")
    assert read(tmp_path / ".cache" / "texts") == ["seen"]


def test_each_jsonl_line_is_a_text(tmp_path: Path) -> None:
    rows = [{"text": "One\u2028line.", "id": 1}, {"text": "Zwei Größen.\n\nEnde.", "title": "x"}]
    file = tmp_path / "a.jsonl"
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text(lines + "\n", encoding="utf-8")
    assert read(file) == ["One\u2028line.", "Zwei Größen.\n\nEnde."]


def test_byte_order_marks_and_carriage_returns_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfOne.\r\n\r\nTwo\r\nlines.\r\n")
    assert read(file) == ["One.\n\nTwo\nlines."]


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("e.txt", b"", "e.txt:1: no text in it; add some or remove the file"),
    "blank": ("e.md", b" \n\t\n", "e.md:1: no text in it; add some or remove the file"),
    "blank jsonl": ("e.jsonl", b"\n\n", "e.jsonl:1: no text in it; add some or remove the file"),
    "latin": ("l.txt", b"one\ntwo\ngr\xfc\xdf\n", "l.txt:3: byte 0xfc is not UTF-8; convert"),
    "zeros": ("z.rst", b"one\n\0\0", "z.rst:2: a zero byte, so not text; remove the file"),
    "cut line": ("j.jsonl", b'{"text": "a"}\n\n{"text": \n', "j.jsonl:3: not JSON ("),
    "text line": ("j.jsonl", b"hello\n", "j.jsonl:1: not JSON (Expecting value, column 1)"),
    "no object": ("j.jsonl", b"[1]\n", 'j.jsonl:1: no object with a "text"'),
    "no text": ("j.jsonl", b'{"body": "a"}\n', 'j.jsonl:1: no object with a "text"'),
    "a number": ("j.jsonl", b'{"text": 5}\n', 'j.jsonl:1: no object with a "text"'),
    "blank text": ("j.jsonl", b'{"text": " "}\n', 'j.jsonl:1: no object with a "text"'),
    "surrogate": ("j.jsonl", b'{"text": "a\\ud800"}\n', "j.jsonl:1: half a surrogate pair"),
    "deep": ("j.jsonl", b"[" * 200_000, "j.jsonl:1: not JSON that can be read"),
    "digits": ("j.jsonl", b"9" * 5000, "j.jsonl:1: not JSON that can be read"),
    "suffix": ("p.pdf", b"%PDF", "p.pdf: not a .txt .md .rst .jsonl file; convert or rename it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    file_name, content, message = BAD[name]
    file = tmp_path / file_name
    file.write_bytes(content)
    with pytest.raises(CorpusError) as caught:
        FolderCorpus(file)
    assert str(caught.value).startswith(str(tmp_path / message))
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value), "it says what to do"


def test_a_bad_file_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(CorpusError, match=r"bad\.txt:1: byte 0xff"):
        FolderCorpus(tmp_path)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="missing: does not exist; name a file or folder"):
        FolderCorpus(tmp_path / "missing")
    with pytest.raises(CorpusError, match=r"no \.txt \.md \.rst \.jsonl file below it"):
        FolderCorpus(tmp_path)


def test_a_file_that_can_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    file = tmp_path / "a.txt"
    file.write_text("text")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CorpusError, match=r"a\.txt: Permission denied; make it readable"):
        FolderCorpus(file)
