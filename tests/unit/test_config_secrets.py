"""Secrets are read from where they are kept, and never shown."""

from __future__ import annotations

import pytest

from tardisd import Secret
from tardisd.config.secrets import MAX_BYTES, read_secret


def test_every_way_to_keep_one(tmp_path):
    kept = tmp_path / "token"
    kept.write_text("sesame\n")
    environ = {"T": "sesame", "CREDENTIALS_DIRECTORY": str(tmp_path), "HOME": str(tmp_path)}
    ways = ["sesame", {"env": "T"}, {"file": str(kept)}, {"file": "~/token"}]
    ways.append({"credential": "token"})
    secrets = [read_secret(way, environ) for way in ways]
    assert [secret.reveal() for secret in secrets] == ["sesame"] * 5
    assert [secret.source for secret in secrets] == [
        "",
        "environment variable T",
        f"file {kept}",
        "file ~/token",
        "credential token",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "the secret is empty"),
        (5, "expected a string, "),
        ({}, "expected a string, "),
        ({"env": "A", "file": "b"}, "expected a string, "),
        ({"env": 5}, "expected a string, "),
        ({"enw": "A"}, "'enw' is no place for a secret"),
        ({"env": "A"}, "environment variable A is not set"),
        ({"env": "EMPTY"}, "environment variable EMPTY is empty"),
        ({"file": "missing"}, "file missing: missing is not a file"),
        ({"file": "."}, "is not a file"),
        ({"file": "empty"}, "file empty is empty"),
        ({"file": "binary"}, "file binary is not UTF-8 text"),
        ({"file": "big"}, "file big is larger than 65536 bytes"),
        ({"credential": "../etc/passwd"}, "is not a name"),
        ({"credential": ".."}, "is not a name"),
        ({"credential": "x"}, r"credential x needs \$CREDENTIALS_DIRECTORY; systemd sets it for L"),
    ],
)
def test_what_cannot_be_read(value, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "big").write_bytes(b"x" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match=text):
        read_secret(value, {"EMPTY": ""})


def test_a_wrong_secret_is_not_quoted():
    for value in (["sesame"], {"env": "A", "sesame": "sesame"}, {"env": ["sesame"]}):
        with pytest.raises(ValueError, match="expected a string") as caught:
            read_secret(value, {})
        assert "sesame" not in str(caught.value)


def test_nothing_prints_it():
    secret = Secret("sesame", "file x")
    for text in (str(secret), repr(secret), f"{secret}", f"{[secret]}", f"{secret!r:>20}"):
        assert "sesame" not in text
        assert "***" in text


def test_comparison():
    assert Secret("a").matches("a")
    assert not Secret("a").matches("b")
    assert not Secret("a").matches("\ud800")
    assert Secret("a") == Secret("a", "elsewhere")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
