"""Writes and reads blend certificates: files that say how a model did under blend.

Blend is refused on a model that has not passed its gates. The file names the model by what its KV
depends on (weights, dtype, RoPE), so that it serves another process, and another engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CERTIFICATE_SCHEMA = "lmcache.blend-certificate/2"
METHOD = "seen/2, segments whole, averaged"
"""What chooses the tokens that are computed again, and how what is reused was encoded: what was
measured with another method says nothing of this one."""
DEFAULT_RATIO = 0.14
"""The share of reused tokens that is computed again, unless another is asked for."""
_NAME_LENGTH = 60
_DOMAIN = b"lmcache.blend-subject/1"
_ROPE = (
    "rope_type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "partial_rotary_factor",
)
_ROPE_DEFAULT = {"rope_type": "default", "partial_rotary_factor": 1.0}


class CertificateError(ValueError):
    """A certificate is missing, unreadable or of another model, or says that a gate failed."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is verified. ``weights`` is a digest or a commit, ``rope`` comes from
    :func:`rope_text`; ``model`` is its name, which counts only where ``weights`` is not known."""

    model: str
    weights: str
    dtype: str
    rope: str

    @property
    def digest(self) -> str:
        """Returns 64 hex digits that are equal for equal models, wherever their files are."""
        digest = hashlib.sha256(_DOMAIN)
        for text in (self.weights or f"named {self.model}", self.dtype, self.rope):
            digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, order=True)
class BlendTerms:
    """The settings under which a model is verified: the share of reused tokens that is computed
    again, what segments are encoded behind (``auto``: a system prompt, else a BOS), and the
    method."""

    ratio: float
    encoding: str = "auto"
    method: str = METHOD


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of verifying a model under blend. ``failed`` are the names of the gates that did
    not hold, ``unsure`` of those that could not be told. ``details`` are gates and curve as
    ``verify blend --json`` writes them."""

    subject: Subject
    terms: BlendTerms
    failed: tuple[str, ...]
    unsure: tuple[str, ...]
    details: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """Returns ``passed``, ``failed`` or ``inconclusive``."""
        return "failed" if self.failed else "inconclusive" if self.unsure else "passed"

    def write(self, path: Path) -> None:
        """Writes the certificate to ``path``, whole or not at all. Raises ``OSError``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        subject = self.subject
        document = {
            "schema": CERTIFICATE_SCHEMA,
            "digest": subject.digest,
            "model": subject.model,
            "weights": subject.weights,
            "dtype": subject.dtype,
            "rope": subject.rope,
            **asdict(self.terms),
            "verdict": self.verdict,
            "failed": list(self.failed),
            "unsure": list(self.unsure),
            **self.details,
        }
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)


def read_certificate(path: Path) -> Certificate:
    """Reads a certificate. Raises :class:`CertificateError` for a file that is missing, damaged or
    no certificate."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CertificateError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise CertificateError(f"{path} is no JSON") from error
    if not isinstance(found, dict) or found.get("schema") != CERTIFICATE_SCHEMA:
        raise CertificateError(f"{path} is no blend certificate ({CERTIFICATE_SCHEMA})")
    known = {"schema", "digest", "verdict", "failed", "unsure", "ratio", "encoding", "method"}
    names = ("model", "weights", "dtype", "rope")
    try:
        subject = Subject(**{name: str(found[name]) for name in names})
        terms = BlendTerms(float(found["ratio"]), str(found["encoding"]), str(found["method"]))
        failed, unsure = (tuple(map(str, found[name])) for name in ("failed", "unsure"))
    except (KeyError, TypeError, ValueError) as error:
        raise CertificateError(f"{path} is damaged ({error!r})") from error
    details = {name: value for name, value in found.items() if name not in {*known, *names}}
    return Certificate(subject, terms, failed, unsure, details)


def certificate_name(subject: Subject, terms: BlendTerms) -> str:
    """Returns the name of the file for a model's certificate under ``terms`` in a folder of many:
    verifying it again under others leaves it."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(subject.model).name)[:_NAME_LENGTH]
    return f"{name}-{subject.digest[:16]}-{terms.encoding}-{terms.ratio:g}.json"


def certificate_in(folder: Path, subject: Subject, terms: BlendTerms) -> Path:
    """Returns the file in ``folder``, which need not exist, that is of ``subject`` under ``terms``,
    or under the largest smaller ratio; else one that is of the model at all. Raises
    :class:`CertificateError` if there is none."""
    found = []
    for path in folder.glob(f"*-{subject.digest[:16]}-*.json"):
        try:
            had = read_certificate(path).terms
        except CertificateError:
            continue
        found.append((_covers(had, terms), had.ratio, path))
    if not found:
        raise CertificateError(f"{subject.model} in {subject.dtype} is not verified yet for blend")
    return max(found)[2]


def checked_certificate(path: Path, subject: Subject, terms: BlendTerms) -> Certificate:
    """Reads the certificate, which must be of ``subject`` under ``terms``, or a smaller ratio than
    theirs, and have passed. Raises :class:`CertificateError`."""
    certificate = read_certificate(path)
    other = certificate.subject
    if other.digest != subject.digest:
        differ = [
            n for n in ("weights", "dtype", "rope") if getattr(other, n) != getattr(subject, n)
        ]
        raise CertificateError(
            f"{path} is of {other.model} ({other.dtype}), not of {subject.model}"
            f" ({subject.dtype}): {', '.join(differ) or 'model'} differ"
        )
    had = certificate.terms
    if not _covers(had, terms):
        raise CertificateError(
            f"{path} is of {had.method}, ratio {had.ratio:g}, encoding {had.encoding}, not of"
            f" {terms.method}, ratio {terms.ratio:g}, encoding {terms.encoding}"
        )
    if certificate.failed:
        raise CertificateError(
            f"{path}: {subject.model} failed {', '.join(map(repr, certificate.failed))}"
        )
    if certificate.unsure:
        raise CertificateError(
            f"{path}: {subject.model} is not verified yet: it was inconclusive whether"
            f" {', '.join(certificate.unsure)}"
        )
    return certificate


def _covers(had: BlendTerms, wanted: BlendTerms) -> bool:
    alike = (had.method, had.encoding) == (wanted.method, wanted.encoding)
    return alike and had.ratio <= wanted.ratio


def rope_text(parameters: Mapping[str, Any] | None) -> str:
    """Returns RoPE parameters as text in one form, whatever an engine has filled in by itself."""
    given = {name: value for name, value in (parameters or {}).items() if value is not None}
    if "type" in given:
        given.setdefault("rope_type", given["type"])
    kept = {name: given[name] for name in _ROPE if name in given}
    plain = {n: v if isinstance(v, str) else float(v) for n, v in kept.items()}
    return json.dumps(_ROPE_DEFAULT | plain, sort_keys=True)
