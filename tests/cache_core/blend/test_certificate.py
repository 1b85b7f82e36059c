"""The certificate of a model for blend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cache_core.blend.certificate import (
    BlendTerms,
    Certificate,
    CertificateError,
    Subject,
    certificate_in,
    certificate_name,
    checked_certificate,
    read_certificate,
    rope_text,
)

MODEL = Subject("some/model", "abc", "float32", rope_text({"rope_theta": 1e4}))
TERMS = BlendTerms(0.14)
PASSED = Certificate(MODEL, TERMS, (), (), {"curve": [1, 2]})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "p.json"
    PASSED.write(path)
    assert read_certificate(path) == checked_certificate(path, MODEL, TERMS) == PASSED
    assert [p.name for p in path.parent.iterdir()] == ["p.json"]


@pytest.mark.parametrize("field", ["weights", "dtype", "rope"])
def test_another_model_is_refused(field: str, tmp_path: Path) -> None:
    PASSED.write(tmp_path / "p")
    with pytest.raises(CertificateError, match=f"{field} differ"):
        checked_certificate(tmp_path / "p", replace(MODEL, **{field: "other"}), TERMS)


def test_the_same_weights_under_another_name_are_the_same_model(tmp_path: Path) -> None:
    PASSED.write(tmp_path / "p")
    assert checked_certificate(tmp_path / "p", replace(MODEL, model="/elsewhere"), TERMS) == PASSED


def test_without_known_weights_the_name_counts() -> None:
    nameless = replace(MODEL, weights="")
    assert nameless.digest != replace(nameless, model="other").digest != MODEL.digest


def test_certificates_of_other_terms_stand_side_by_side(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="some/model in float32 is not verified yet"):
        certificate_in(tmp_path / "none", MODEL, TERMS)

    def written(terms: BlendTerms, subject: Subject = MODEL) -> Path:
        path = tmp_path / certificate_name(subject, terms)
        replace(PASSED, terms=terms, subject=subject).write(path)
        return path

    written(TERMS, replace(MODEL, dtype="bfloat16"))
    none, more = written(BlendTerms(0.14, "none")), written(BlendTerms(0.3))
    assert certificate_in(tmp_path, MODEL, TERMS) in (none, more)
    less, same = written(BlendTerms(0.1)), written(TERMS)
    (tmp_path / f"x-{MODEL.digest[:16]}-auto-0.12.json").write_text("{")
    for ratio, path in ((0.1, less), (0.13, less), (0.14, same), (0.2, same), (0.3, more)):
        # Whoever has the same weights under another name finds it too.
        other = replace(MODEL, model="/elsewhere/m")
        assert certificate_in(tmp_path, other, BlendTerms(ratio)) == path
    assert certificate_in(tmp_path, MODEL, BlendTerms(0.14, "none")) == none


def test_a_failed_gate_is_named(tmp_path: Path) -> None:
    replace(PASSED, failed=("no row sees the future",)).write(tmp_path / "p")
    with pytest.raises(CertificateError, match="failed 'no row sees the future'"):
        checked_certificate(tmp_path / "p", MODEL, TERMS)


def test_what_could_not_be_told_is_not_verified_yet(tmp_path: Path) -> None:
    unsure = replace(PASSED, unsure=("KL",))
    unsure.write(tmp_path / "p")
    assert unsure.verdict == "inconclusive"
    with pytest.raises(CertificateError, match="not verified yet"):
        checked_certificate(tmp_path / "p", MODEL, TERMS)


@pytest.mark.parametrize(
    "terms", [BlendTerms(0.1), BlendTerms(0.14, "none"), BlendTerms(0.14, "auto", "another method")]
)
def test_other_terms_are_refused(terms: BlendTerms, tmp_path: Path) -> None:
    PASSED.write(tmp_path / "p")
    with pytest.raises(CertificateError, match=r"ratio 0\.14, encoding auto, not of"):
        checked_certificate(tmp_path / "p", MODEL, terms)
    assert checked_certificate(tmp_path / "p", MODEL, BlendTerms(0.3)) == PASSED


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "can't be read"),
        ("{", "no JSON"),
        ("[]", "no blend certificate"),
        ('{"schema": "lmcache.blend-certificate/2"}', "damaged"),
    ],
)
def test_what_is_no_certificate_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "p").write_text(text)
    with pytest.raises(CertificateError, match=words):
        read_certificate(tmp_path / "p")


def test_rope_is_one_text_for_what_engines_fill_in() -> None:
    ours = rope_text({"rope_type": "llama3", "factor": 8, "rope_theta": 10000})
    theirs = {"rope_theta": 1e4, "type": "llama3", "factor": 8.0, "partial_rotary_factor": 1.0}
    assert rope_text({**theirs, "attention_factor": None, "other": []}) == ours
    assert rope_text({"rope_type": "llama3", "factor": 4, "rope_theta": 10000}) != ours
    assert rope_text(None) == rope_text({"rope_type": "default"})
