"""Lineage: what a manifest must say for a file to be used."""

from __future__ import annotations

import pytest

from schemas.units import SourceFile
from stages.lineage import NO_CONSENT, REASONS, LineageConfig, decide


def source(licence: str = "", consent: str = "") -> SourceFile:
    return SourceFile(id="0", uri="/clips/a.mp4", identity="a", licence=licence, consent=consent)


@pytest.mark.parametrize("said", ["", "  ", "no", "No", "FALSE", "0", " withdrawn ", "Not  given", "n/a", "unknown"])
def test_no_consent_is_none(said: str) -> None:
    assert decide(source(consent=said), LineageConfig(require_consent=True)).reason == "no_consent"


@pytest.mark.parametrize("said", ["yes", "True", "1", "form-17.pdf", "not needed", "nobody objects"])
def test_any_other_word_is_the_users(said: str) -> None:
    assert decide(source(consent=said), LineageConfig(require_consent=True)).accepted


def test_licences_are_compared_as_words() -> None:
    rules = LineageConfig(licences=["CC0-1.0", "CC BY 4.0"])
    assert [decide(source(licence=said), rules).reason for said in ("cc0-1.0", " CC  BY 4.0", "CC BY-NC 4.0", "")] == [
        "",
        "",
        *["licence_not_allowed"] * 2,
    ]


def test_without_a_rule_anything_goes_and_consent_comes_first() -> None:
    assert decide(source(), LineageConfig()).accepted
    assert decide(source(), LineageConfig(require_consent=True, licences=["CC0"])).reason == "no_consent"
    assert decide(source(consent="yes"), LineageConfig(require_consent=True, licences=["CC0"])).reason == "licence_not_allowed"
    assert all(word == word.strip().casefold() for word in NO_CONSENT) and len(REASONS) == 2
