"""Remote tiers by URL: what can't be meant is told, and no secret is."""

from __future__ import annotations

import pytest

from cache_core.tiers import TierError
from cache_core.tiers.remote.url import open_remote, redacted


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://host:1", "is not known"),
        ("redis://", "is not known"),
        ("redis://host:port", "makes no sense"),
        ("redis://host?parts=1", "has no option 'parts'"),
        ("redis://host?ca=x", "has no option 'ca'"),
        ("redis://host/zero", "database 'zero' is no number"),
        ("redis://host?timeout=soon", "timeout is 'soon'"),
        ("redis://host?connections=0", "connections is 0"),
        ("rediss://host?verify=perhaps", "must be yes or no"),
        ("rediss://host?ca=/no/such/file", "No such file"),
        ("redis://:hunter22@host?password_file=/no/such", "No such file"),
        ("mooncake://host", "needs host:port"),
    ],
)
def test_a_url_that_makes_no_sense(url: str, message: str) -> None:
    with pytest.raises(TierError, match=message) as error:
        open_remote(url, 4096)
    assert "hunter22" not in str(error.value)


def test_a_redacted_url_has_no_secret() -> None:
    assert redacted("redis://u:p@host:1/2?password_file=x") == "redis://u:***@host:1/2"
    assert redacted("redis://host:1") == "redis://host:1"
    assert redacted("rediss://u@host") == "rediss://u@host"
