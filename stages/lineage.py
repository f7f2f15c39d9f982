"""Lineage: whether what a manifest says of a file allows its use. A pure function of the manifest; nothing of the file is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.outcomes import ACCEPTED, Verdict
from schemas.units import SourceFile

# What a manifest may say where nobody has consented, in any case; anything else is the user's own word for a consent.
NO_CONSENT = frozenset(
    (
        *("", "-", "?", "no", "n", "false", "f", "0", "0.0", "none", "null", "nan", "n/a", "na", "unknown", "missing", "pending"),
        *("expired", "withdrawn", "revoked", "refused", "denied", "declined", "not given", "not granted"),
    )
)
REASONS = frozenset(("no_consent", "licence_not_allowed"))


@dataclass(frozen=True, kw_only=True)
class LineageConfig:
    """Which files may be used, clips and portraits alike. Changing it measures nothing again."""

    require_consent: bool = False  # the manifest's `consent` must say so
    licences: list[str] = field(default_factory=list)  # those allowed, as the manifest's `licence` has them, in any case; none: all are


def decide(source: SourceFile, rules: LineageConfig) -> Verdict:
    """Accepts, or names what the file lacks; consent first. The space around words does not count."""
    if rules.require_consent and _plain(source.consent) in NO_CONSENT:
        return Verdict(False, "no_consent")
    if rules.licences and _plain(source.licence) not in map(_plain, rules.licences):
        return Verdict(False, "licence_not_allowed")
    return ACCEPTED


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
