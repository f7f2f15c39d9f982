"""A sample's KEY.json to start from: tests replace what they are about."""

from __future__ import annotations

from schemas.sample import SampleInfo

ANY_INFO = SampleInfo(
    key="0" * 20,
    clip="clip",
    portrait="portrait",
    performer="person-a",
    appearance="person-b",
    split="train",
    generation=0,
    source_digest="0",
    source_first_frame=0,
    source_last_frame=9,
    source_fps=25.0,
    licence="CC0-1.0",
    consent="",
    appearance_licence="CC0-1.0",
    appearance_consent="",
    generator="test",
    generator_version=1,
    clip_fingerprint="0",
    driving_fingerprint="0",
    frames=10,
    fps=25,
    size_px=64,
    has_audio=False,
)
