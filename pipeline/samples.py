"""An accepted pair on its way into a shard: where its members lie, and what KEY.json says of it."""

from __future__ import annotations

from typing import Any

from pipeline.pack import SampleFiles
from pipeline.plan import PlannedPair
from pipeline.state import Generated
from schemas.sample import AUDIO, CONTROLS, DRIVING, MEMBERS, REGIONS_MEMBER, SOURCE, TARGET, SampleInfo
from schemas.store import Store
from stages import faces, reenact, regions


def lineage_of(state: Generated, planned: PlannedPair, weights_digest: str) -> dict[str, Any]:
    """Where a pair's pixels come from, by the names that KEY.json and the table of samples have for it; "" and -1 for what is not made.

    `weights_digest`: of the weights that the run's present settings draw with, which are those of every record that counts.
    """
    clip, portrait = state.clips.get(planned.clip), state.portraits.get(planned.portrait)
    rendered, measured = state.reenact.get(planned.pair), state.regions.get(planned.pair)
    driving = rendered.children[0] if rendered and rendered.children else {}
    return {
        "source_digest": clip.content if clip else "",
        "licence": clip.source.licence if clip else "",
        "consent": clip.source.consent if clip else "",
        "appearance_digest": portrait.content if portrait else "",
        "appearance_licence": portrait.source.licence if portrait else "",
        "appearance_consent": portrait.source.consent if portrait else "",
        "generator": driving.get("generator", ""),
        "generator_version": driving.get("generator_version", -1),
        "weights_digest": weights_digest if driving else "",
        "config_fingerprint": measured.fingerprint if measured else "",
        "crosspair_version": driving.get("crosspair_version", ""),
        "synthetic": True,
    }


def sample_of(root: Store, state: Generated, planned: PlannedPair, weights_digest: str) -> SampleFiles:
    """A pair's files and what KEY.json says of it."""
    pair = state.pair(planned)
    clip, portrait = pair.clip, pair.portrait
    rendered, measured = state.reenact[planned.pair], state.regions[planned.pair]
    places = {
        SOURCE: (clip.folder, clip.file(faces.STILL), clip.digests),
        TARGET: (clip.folder, clip.file(faces.TARGET), clip.digests),
        DRIVING: (rendered.folder, reenact.DRIVING, rendered.digests),
        REGIONS_MEMBER: (measured.folder, regions.REGIONS_FILE, measured.digests),
        CONTROLS: (measured.folder, regions.CONTROLS_FILE, measured.digests),
    }
    if clip.has_audio:
        places[AUDIO] = (clip.folder, clip.file(faces.AUDIO), clip.digests)
    assert set(places) <= set(MEMBERS)
    people = state.people(planned)
    info = SampleInfo(
        key=planned.pair,
        clip=clip.id,
        portrait=portrait.id,
        performer=people["performer"],
        appearance=people["appearance"],
        split=planned.split,
        generation=planned.generation,
        source_first_frame=clip.first_frame,
        source_last_frame=clip.last_frame,
        source_fps=clip.source_fps,
        clip_fingerprint=_short_fingerprint(clip.folder),
        driving_fingerprint=rendered.fingerprint,
        frames=clip.frames,
        fps=clip.fps,
        size_px=clip.size_px,
        has_audio=clip.has_audio,
        **lineage_of(state, planned, weights_digest),
    )
    files = {name: (f"{folder}/{file}", digests[file]) for name, (folder, file, digests) in places.items()}
    return SampleFiles(info, root, files, measured.data)


def _short_fingerprint(folder: str) -> str:
    """The fingerprint's first eight characters, which name an artifact folder."""
    return folder.rsplit("/", 1)[1].split("-")[0]
