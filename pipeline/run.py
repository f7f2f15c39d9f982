"""A run: list, prepare, plan, generate, pack. Each step takes what is due from the ledger, so that running again resumes."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import yaml

from pipeline import tables
from pipeline.config import RunConfig, fingerprints
from pipeline.executor import cluster, run_graph
from pipeline.ledger import Ledger, Record
from pipeline.pack import SampleFiles, pack
from pipeline.plan import assign_splits, grow
from pipeline.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, list_sources
from pipeline.state import Generated, Prepared, read_generated, read_prepared, source_verdict
from pipeline.storage import exclusive, write_atomic
from schemas.ids import digest
from schemas.outcomes import Outcome, Verdict
from schemas.sample import INDEX_NAME, MEMBERS, SampleInfo, read_index
from schemas.units import Clip, Driving, PortraitUnit, SourceFile
from stages.faces import AUDIO, STILL, TARGET
from stages.reenact import DRIVING
from stages.regions import CONTROLS_FILE, REGIONS_FILE

STEPS = ("prepare", "plan", "generate", "pack")
_RECORDED = ("ray", "torch", "numpy", "av", "mediapipe", "opencv-contrib-python", "onnxruntime", "pyarrow", "imageio-ffmpeg", "scenedetect")


class Watcher(Protocol):
    """Someone who looks on: told of steps, of the number of units ahead, and of each unit that ends."""

    def step(self, name: str, units: int) -> None: ...
    def unit(self, stage: str, outcome: str, reason: str) -> None: ...
    def say(self, text: str) -> None: ...


@dataclass
class Summary:
    """How a run stands when it returns: outcome -> count."""

    sources: dict[str, int] = field(default_factory=dict)
    clips: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    shards: Path | None = None


def run(config: RunConfig, *, base: Path, watcher: Watcher, until: str = "pack") -> Summary:
    """Works on `config.run` (relative to `base`) up to and with step `until`, and returns how it stands.

    Raises:
        ValueError: what the user can mend: nothing to list, another process on the run, an unknown step.
    """
    if until not in STEPS:
        raise ValueError(f"--until {until}: one of {', '.join(STEPS)}")
    root = (base / config.run).absolute()
    with exclusive(root):
        _write_run_file(root, config, watcher)
        clips, images = _list(root, config, base)
        with cluster(config.ray) as start:
            prepared = _prepare(root, config, clips, images, watcher, start)
            generated = _plan(root, config, prepared, watcher) if until != "prepare" else None
            if until in ("generate", "pack"):
                generated = _generate(root, config, prepared, watcher, start)
        if until == "pack":
            assert generated is not None
            _pack(root, config, generated, watcher)
        return _summarise(root, config, prepared, generated)


def _write_run_file(root: Path, config: RunConfig, watcher: Watcher) -> None:
    """run.yaml; warns where libraries differ from those that the run began with."""
    path = root / "run.yaml"
    versions = {name: importlib.metadata.version(name) for name in _RECORDED}
    if path.is_file():
        before = yaml.safe_load(path.read_text()).get("versions", {})
        changed = [f"{n} {before[n]} -> {v}" for n, v in versions.items() if before.get(n, v) != v]
        if changed:
            watcher.say(f"warning: the run began with other versions; bytes may differ: {', '.join(changed)}")
    prints = fingerprints(config)
    content = {
        "crosspair": importlib.metadata.version("crosspair"),
        "config": asdict(config),
        "fingerprint": digest(*(f"{k}={v}" for k, v in sorted(prints.items()))),
        "fingerprints": prints,
        "versions": versions,
    }
    write_atomic(path, yaml.safe_dump(content, sort_keys=False).encode())


def _list(root: Path, config: RunConfig, base: Path) -> tuple[list[SourceFile], list[SourceFile]]:
    """All clip and portrait files ever listed for this run: a file that has gone since is still a unit with an outcome."""
    known = tables.load(root, "sources")
    listed = {"clip": list_sources(config.clips, CLIP_SUFFIXES, base)}
    listed["portrait"] = list_sources(config.portraits, IMAGE_SUFFIXES, base) if config.portraits else []
    both = []
    for kind, sources in listed.items():
        present = {s.id for s in sources}
        gone = [_source_of(r) for r in known if r["kind"] == kind and r["source"] not in present]
        both.append(sorted([*sources, *gone], key=lambda s: s.uri))
    if not known:
        rows = [_source_row(s, k) for k, sources in zip(listed, both, strict=True) for s in sources]
        tables.save(root, "sources", rows, tables.SOURCES)
    return both[0], both[1]


def _source_of(r: dict[str, Any]) -> SourceFile:
    return SourceFile(id=r["source"], uri=r["uri"], identity=r["identity"], licence=r["licence"], consent=r["consent"])


def _source_row(source: SourceFile, kind: str, **more: Any) -> dict[str, Any]:
    about = {k: v for k, v in asdict(source).items() if k != "id"}
    return {"source": source.id, "kind": kind, **about, "outcome": "", "reason": "", **more}


def _prepare(
    root: Path,
    config: RunConfig,
    clips: Sequence[SourceFile],
    images: Sequence[SourceFile],
    watcher: Watcher,
    start: Callable[[], None],
) -> Prepared:
    state = read_prepared(root, config, clips, images)
    due = state.due()
    watcher.step("prepare", len(due))
    if due:
        start()
        run_graph(due, (("ingest",), ("faces", "portraits")), root, config, watcher.unit)
        state = read_prepared(root, config, clips, images)
        _sweep(root, {"ingest": state.ingest, "faces": state.faces, "portraits": state.portraits})
    _save_prepared(root, state)
    return state


def _save_prepared(root: Path, state: Prepared) -> None:
    rows = []
    for kind, sources, records in (("clip", state.clip_sources, state.ingest), ("portrait", state.image_sources, state.portraits)):
        for source in sources:
            outcome, reason = source_verdict(source, state)
            data = records[source.id].data if source.id in records else {}
            measured = {k: data[k] for k in ("content", "frames", "fps", "width", "height", "duration_s", "has_audio") if k in data}
            rows.append(_source_row(source, kind, **measured) | {"outcome": outcome, "reason": reason})
    tables.save(root, "sources", rows, tables.SOURCES)
    unit_tables: tuple[tuple[str, Sequence[Clip | PortraitUnit], dict[str, Verdict], pa.Schema], ...] = (
        ("clips", state.clips, state.clip_verdicts, tables.CLIPS),
        ("portraits", state.stills, state.still_verdicts, tables.PORTRAITS),
    )
    for name, units, verdicts, schema in unit_tables:
        unit_rows = []
        for unit in units:
            verdict = verdicts[unit.id]
            origin = {"source": unit.source.id, "identity": unit.source.identity, "uri": unit.source.uri}
            ending = {"outcome": Outcome.DONE if verdict.accepted else Outcome.REJECTED, "reason": verdict.reason}
            unit_rows.append({**asdict(unit), **origin, **ending, name[:-1]: unit.id})
        tables.save(root, name, unit_rows, schema)
    _save_outcomes(root, state, None)


def _plan(root: Path, config: RunConfig, state: Prepared, watcher: Watcher) -> Generated:
    portraits = state.accepted_portraits(config)
    clips = state.accepted_clips
    known = {r["identity"]: r["split"] for r in tables.load(root, "identities")}
    names = [u.source.identity for u in (*clips, *portraits)]
    split = assign_splits(names, known, config.splits, config.pairs.seed)
    earlier = tables.load_pairs(root)
    settings = config.pairs
    new = grow(
        clips,
        portraits,
        earlier,
        split,
        per_clip=settings.per_clip,
        max_yaw_difference_deg=settings.max_yaw_difference_deg,
        max_pitch_difference_deg=settings.max_pitch_difference_deg,
        seed=settings.seed,
    )
    watcher.step("plan", len(new))
    counts = [
        {
            "identity": i,
            "split": s,
            "clips": sum(c.source.identity == i for c in clips),
            "portraits": sum(p.source.identity == i for p in portraits),
        }
        for i, s in split.items()
    ]
    tables.save(root, "identities", counts, tables.IDENTITIES)
    tables.save_pairs(root, [*earlier, *new])
    return read_generated(root, config, state, [*earlier, *new])


def _generate(root: Path, config: RunConfig, prepared: Prepared, watcher: Watcher, start: Callable[[], None]) -> Generated:
    planned = tables.load_pairs(root)
    state = read_generated(root, config, prepared, planned)
    motion = state.due_motion()
    if motion:
        watcher.step("motion", len(motion))
        start()
        run_graph(motion, (("motion",),), root, config, watcher.unit)
        state = read_generated(root, config, prepared, planned)
    due = state.due()
    watcher.step("generate", len(due))
    if due:
        start()
        run_graph(due, (("reenact",), ("regions",)), root, config, watcher.unit)
        state = read_generated(root, config, prepared, planned)
    if due or motion:
        _sweep(root, {"motion": state.motion, "reenact": state.reenact, "regions": state.regions})
    _save_outcomes(root, prepared, state)
    return state


def _pack(root: Path, config: RunConfig, state: Generated, watcher: Watcher) -> None:
    samples = [_sample(root, state, p) for p in state.live() if state.verdict(p)[0] == Outcome.DONE]
    watcher.step("pack", len(samples))
    folder = root / "shards" / config.set_name
    index = pack(folder, samples, max_mb=config.shards.max_mb, seed=config.pairs.seed, progress=watcher.say)
    tar_of = dict(zip(index["sample"].to_pylist(), index["tar"].to_pylist(), strict=True))
    rows = []
    for p in state.planned:
        outcome, reason = state.verdict(p)
        fields = {k: v for k, v in asdict(p).items() if k != "generation"}
        scores = state.regions[p.pair].data if p.pair in state.regions else {}
        rows.append(
            {**fields, "set": config.set_name, "outcome": outcome, "reason": reason, "tar": tar_of.get(p.pair, ""), "scores": scores}
        )
    tables.save(root, "samples", rows, tables.SAMPLES)


def _sample(root: Path, state: Generated, planned: Any) -> SampleFiles:
    """A pair's files and what KEY.json says of it."""
    pair = state.pair(planned)
    clip, portrait = pair.clip, pair.portrait
    reenact, regions = state.reenact[planned.pair], state.regions[planned.pair]
    driving = Driving(**{**reenact.children[0], "pair": pair})
    places = {
        "source.png": (clip.folder, clip.file(STILL), clip.digests),
        "target.mp4": (clip.folder, clip.file(TARGET), clip.digests),
        "driving.mp4": (reenact.folder, DRIVING, reenact.digests),
        "regions.npz": (regions.folder, REGIONS_FILE, regions.digests),
        "controls.npz": (regions.folder, CONTROLS_FILE, regions.digests),
    }
    if clip.has_audio:
        places["audio.flac"] = (clip.folder, clip.file(AUDIO), clip.digests)
    assert set(places) <= set(MEMBERS)
    info = SampleInfo(
        key=planned.pair,
        clip=clip.id,
        portrait=portrait.id,
        performer=planned.performer,
        appearance=planned.appearance,
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
        clip_fingerprint=state_fingerprint(clip.folder),
        driving_fingerprint=driving.fingerprint,
        frames=clip.frames,
        fps=clip.fps,
        size_px=clip.size_px,
        has_audio=clip.has_audio,
    )
    files = {name: (root / folder / file, digests[file]) for name, (folder, file, digests) in places.items()}
    return SampleFiles(info, files, regions.data)


def state_fingerprint(folder: str) -> str:
    """The fingerprint's first eight characters, which name an artifact folder."""
    return folder.rsplit("/", 1)[1].split("-")[0]


def _sweep(root: Path, records: dict[str, dict[str, Record]]) -> None:
    """Takes away what attempts left that no record names: those of killed workers, and losers of a race."""
    for stage, by_unit in records.items():
        prints = {r.fingerprint[:8] for r in by_unit.values()}
        for unit_folder in (root / "artifacts" / stage).glob("*/*"):
            record = by_unit.get(unit_folder.name)
            for attempt in unit_folder.iterdir():
                mine = attempt.name.split("-")[0] in prints
                if mine and (record is None or str(attempt.relative_to(root)) != record.folder):
                    shutil.rmtree(attempt)


def _save_outcomes(root: Path, prepared: Prepared, generated: Generated | None) -> None:
    rows = []
    stages = [prepared.ingest, prepared.faces, prepared.portraits]
    stages += [generated.motion, generated.reenact, generated.regions] if generated else []
    for records in stages:
        for r in records.values():
            fields = {n: getattr(r, n) for n in tables.OUTCOMES.names}
            if r.unit in prepared.duplicates and r.outcome == Outcome.DONE:
                fields |= {"outcome": Outcome.REJECTED, "reason": "duplicate", "message": f"same content as {prepared.duplicates[r.unit]}"}
            rows.append(fields)
    verdicts = [(c.id, "clip", c.shot, c.source.uri, "gates", prepared.clip_verdicts[c.id]) for c in prepared.clips]
    verdicts += [(p.id, "portrait", p.source.id, p.source.uri, "gates", prepared.still_verdicts[p.id]) for p in prepared.stills]
    if generated:
        planned = {p.clip for p in generated.planned}
        lonely = [c for c in prepared.accepted_clips if c.id not in planned]
        rows += [_verdict_row(c.id, "clip", c.shot, c.source.uri, "plan", Outcome.REJECTED, "no_partner") for c in lonely]
        uri = {c.id: c.source.uri for c in prepared.clips}
        measured = [p for p in generated.live() if p.pair in generated.verdicts]
        verdicts += [(p.pair, "pair", p.clip, uri[p.clip], "quality", generated.verdicts[p.pair]) for p in measured]
    for unit, kind, parent, source_uri, stage, verdict in verdicts:
        outcome = Outcome.DONE if verdict.accepted else Outcome.REJECTED
        rows.append(_verdict_row(unit, kind, parent, source_uri, stage, outcome, verdict.reason))
    tables.save(root, "outcomes", rows, tables.OUTCOMES)


def _verdict_row(unit: str, kind: str, parent: str, uri: str, stage: str, outcome: str, reason: str) -> dict[str, Any]:
    about = {"unit": unit, "kind": kind, "parent": parent, "source_uri": uri, "stage": stage}
    return {**about, "outcome": outcome, "reason": reason, "message": "", "attempts": 1, "seconds": 0.0}


def _summarise(root: Path, config: RunConfig, prepared: Prepared, generated: Generated | None) -> Summary:
    def count(outcomes: Sequence[str]) -> dict[str, int]:
        return {o or "left": list(outcomes).count(o) for o in sorted(set(outcomes))}

    sources = [source_verdict(s, prepared) for s in (*prepared.clip_sources, *prepared.image_sources)]
    clips = [Outcome.DONE if v.accepted else Outcome.REJECTED for v in prepared.clip_verdicts.values()]
    pairs = [generated.verdict(p) for p in generated.live()] if generated else []
    reasons = [r for _, r in (*sources, *pairs) if r]
    folder = root / "shards" / config.set_name
    packed = (folder / INDEX_NAME).is_file()
    return Summary(
        sources=count([o for o, _ in sources]),
        clips=count(clips),
        pairs=count([o for o, _ in pairs]),
        reasons={r: reasons.count(r) for r in sorted(set(reasons))},
        samples=read_index(folder).num_rows if packed else 0,
        shards=folder if packed else None,
    )


def due_again(root: Path, reason: str | None = None) -> int:
    """Makes failed and quarantined units due again (all, or those of one reason); how many."""
    total = 0
    ledger = Ledger(root)
    for stage in ("ingest", "faces", "portraits", "motion", "reenact", "regions"):
        prints = yaml.safe_load((root / "run.yaml").read_text())["fingerprints"]
        records = ledger.read(stage, prints[stage]).values()
        bad = {r.unit for r in records if r.outcome in (Outcome.FAILED, Outcome.QUARANTINED) and reason in (None, r.reason)}
        ledger.forget(stage, bad)
        total += len(bad)
    return total
