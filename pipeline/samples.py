"""An accepted pair on its way into a shard: where its members lie, and what KEY.json says of it."""

from __future__ import annotations

from pipeline.pack import SampleFiles
from pipeline.plan import PlannedPair
from pipeline.state import Generated
from schemas.sample import AUDIO, CONTROLS, DRIVING, MEMBERS, REGIONS_MEMBER, SOURCE, TARGET, SampleInfo
from schemas.store import Store
from schemas.units import Driving
from stages import faces, reenact, regions


def sample_of(root: Store, state: Generated, planned: PlannedPair) -> SampleFiles:
    """A pair's files and what KEY.json says of it."""
    pair = state.pair(planned)
    clip, portrait = pair.clip, pair.portrait
    rendered, measured = state.reenact[planned.pair], state.regions[planned.pair]
    driving = Driving(**{**rendered.children[0], "pair": pair})
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
        source_digest=clip.content,
        source_first_frame=clip.first_frame,
        source_last_frame=clip.last_frame,
        source_fps=clip.source_fps,
        licence=clip.source.licence,
        consent=clip.source.consent,
        appearance_licence=portrait.source.licence,
        appearance_consent=portrait.source.consent,
        generator=driving.generator,
        generator_version=driving.generator_version,
        clip_fingerprint=_short_fingerprint(clip.folder),
        driving_fingerprint=driving.fingerprint,
        frames=clip.frames,
        fps=clip.fps,
        size_px=clip.size_px,
        has_audio=clip.has_audio,
    )
    files = {name: (f"{folder}/{file}", digests[file]) for name, (folder, file, digests) in places.items()}
    return SampleFiles(info, root, files, measured.data)


def _short_fingerprint(folder: str) -> str:
    """The fingerprint's first eight characters, which name an artifact folder."""
    return folder.rsplit("/", 1)[1].split("-")[0]
