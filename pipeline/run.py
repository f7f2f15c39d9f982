"""A run: list, prepare, plan, generate, pack. Each step takes what is due from the ledger, so that running again resumes."""

from __future__ import annotations

import importlib.metadata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence, Set
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import yaml

from pipeline import tables
from pipeline.added import deal_added, note
from pipeline.books import Summary, is_within, list_known, list_run, save_outcomes, save_prepared, summarise
from pipeline.compare import sets_of
from pipeline.config import RunConfig, fingerprints, weights_digest
from pipeline.engine import on_this_cluster, with_expressions, with_weights
from pipeline.executor import cluster, run_graph
from pipeline.face_networks import with_face_networks
from pipeline.forget import enforce, without_entries
from pipeline.ledger import Ledger, sweep
from pipeline.pack import pack
from pipeline.people import embeddings_of, identity_rows, likenesses
from pipeline.plan import grow, planned_pairs, with_generation
from pipeline.redo import foresee, remember
from pipeline.samples import lineage_of, sample_of
from pipeline.sources import IMAGE_SUFFIXES, Listing, absolute, listing
from pipeline.state import Generated, Prepared, read_generated, read_prepared, source_verdict
from pipeline.storage import exclusive, read_run_file
from pipeline.tombstones import read_tombstones
from schemas.config import parse_config
from schemas.ids import digest
from schemas.outcomes import Outcome
from schemas.store import DiskStore, Place, Store, open_store
from schemas.units import SourceFile

STEPS = ("prepare", "plan", "generate", "pack")
_PREPARE = (("ingest",), ("faces", "portraits"))
_IDENTIFY = (("identity",),)  # of clips that are no duplicates, which the ledger tells when all are cut
_GENERATE = (("motion",), ("reenact",), ("regions",))
_RECORDED = ("ray", "torch", "numpy", "av", "mediapipe", "opencv-contrib-python", "pyarrow", "imageio-ffmpeg", "scenedetect")


class Watcher(Protocol):
    """Someone who looks on: told of steps, of the number of units ahead, and of each unit that ends."""

    def step(self, name: str, units: int) -> None: ...
    def unit(self, stage: str, outcome: str, reason: str) -> None: ...
    def say(self, text: str) -> None: ...


def run(config: RunConfig, *, base: Path, watcher: Watcher, until: str = "pack") -> Summary:
    """Works on `config.run` (relative to `base`) up to and with step `until`, and returns how it stands.

    What is done again, and why, is said before anything is done.

    Raises:
        ValueError: what the user can mend: nothing to list, another process on the run, an unknown step.
    """
    if until not in STEPS:
        raise ValueError(f"--until {until}: one of {', '.join(STEPS)}")
    root = open_store(config.run, base)
    with exclusive(root):
        before = _run_file(root)
        config = _with_models(config, base, root, before, watcher)
        # Of sessions that were killed; this process alone holds the run now.
        Ledger(root).close_attempts()
        root.clear_unfinished()
        enforce(root, watcher.say)
        clips, images = list_run(root, config, base, say=watcher.say)
        for sentence in foresee(root, config, before, lambda: _due(root, config, clips, images)) if before else ():
            watcher.say(sentence)
        _write_run_file(root, config, base, before, watcher)
        with cluster(config.ray) as start:
            prepared = _prepare(root, config, clips, images, watcher, start)
            generated = _plan(root, config, prepared, watcher) if until != "prepare" else None
            if until in ("generate", "pack"):
                generated = _generate(root, config, prepared, watcher, start)
        if until == "pack":
            assert generated is not None
            _pack(root, config, generated, watcher)
        Ledger(root).compact()
        return summarise(root, config, prepared, generated)


def add_portraits(place: Place, portraits: Sequence[str], *, base: Path, per_clip: int = 1, watcher: Watcher) -> Summary:
    """Brings new people to appear into a run: one more generation of its plan, which gives each clip up to `per_clip` of them.

    Works with the config that the run went on with last. What was killed in the middle goes on where it stood, by this or by `run`.

    Args:
        portraits: image files, globs, folders or manifests, relative to `base` or in S3, as `portraits` of a config.

    Raises:
        ValueError: what the user can mend: no run, or one that has no plan yet or would come out otherwise now; nothing to list.
    """
    if per_clip < 1:
        raise ValueError(f"--per-clip {per_clip}: at least 1")
    root = open_store(place)
    read_run_file(root)  # or its error, before there is a folder
    with exclusive(root):
        before = read_run_file(root)
        config = parse_config(RunConfig, before["config"], where=root.at("run.yaml"))
        _ready_for_more(root, config, before)
        Ledger(root).close_attempts()
        root.clear_unfinished()
        enforce(root, watcher.say)
        found = listing(portraits, IMAGE_SUFFIXES, base)
        named = read_tombstones(root).let_in(s for s in found.sources if not is_within(s, root))
        if len(named) < len(found.sources):
            watcher.say(f"{len(found.sources) - len(named)} of the files are the run's own, or show somebody whom it was told to forget")
        rows = {r["source"] for r in note(root, Listing(named, found.told), per_clip)}
        clips, images = list_known(root, Listing([s for s in named if s.id in rows], found.told))
        _write_run_file(root, config, base, before, watcher)
        with cluster(config.ray) as start:
            prepared = _prepare(root, config, clips, images, watcher, start, look_again=rows)
            _say_of(named, prepared, watcher)
            _plan(root, config, prepared, watcher, only_added=True)
            generated = _generate(root, config, prepared, watcher, start)
        _pack(root, config, generated, watcher)
        Ledger(root).compact()
        return summarise(root, config, prepared, generated)


def _ready_for_more(root: Store, config: RunConfig, before: dict[str, Any]) -> None:
    """Raises ValueError for a run whose clips are not all known, or of which this version would make other bytes."""
    prints = fingerprints(config)
    if changed := [stage for stage, p in prints.items() if before["fingerprints"].get(stage) != p]:
        raise ValueError(f"{root}: this version makes {', '.join(changed)} otherwise; `crosspair run` with its config first")
    clips, images = list_known(root)
    added = {r["source"] for r in tables.load(root, "added")}
    state = read_prepared(root, config, clips, [s for s in images if s.id not in added])
    if state.due() or not len(tables.pairs(root)):
        raise ValueError(f"{root}: not all clips are planned yet; `crosspair run` its config first, or name the portraits there")


def _say_of(named: Sequence[SourceFile], state: Prepared, watcher: Watcher) -> None:
    verdicts = [source_verdict(s, "portrait", state) for s in named]
    counts = Counter(reason or outcome for outcome, reason in verdicts if outcome != Outcome.DONE)
    refused = "".join(f", {n} {what}" for what, n in sorted(counts.items()))
    watcher.say(f"{len(named) - counts.total()} of {len(named)} portraits can appear{refused}")


def _with_models(config: RunConfig, base: Path, root: Store, before: dict[str, Any] | None, watcher: Watcher) -> RunConfig:
    """The config with the digests of all the files of weights that it names. `before`: run.yaml as it is."""
    config = with_expressions(with_face_networks(config, base, (before or {}).get("config")), base)
    return with_weights(config, base, scratch=_models_folder(root), say=watcher.say)


def _models_folder(root: Store) -> Path:
    """Where graphs that are made from the user's weights are kept: with the run, if workers can open files there."""
    if isinstance(root, DiskStore):
        return root.root / "models"
    return Path.home() / ".cache" / "crosspair" / "models"


def foresee_run(config: RunConfig, *, base: Path, watcher: Watcher) -> None:
    """Says what `run` would do again and why, and how much is due as far as is known. Changes nothing of the run.

    Raises:
        ValueError: as `run`.
    """
    root = open_store(config.run, base)
    before = _run_file(root)
    config = _with_models(config, base, root, before, watcher)
    clips, images = list_run(root, config, base, save=False, say=watcher.say)
    for sentence in foresee(root, config, before, lambda: _due(root, config, clips, images)) if before else ():
        watcher.say(sentence)
    prepared = read_prepared(root, config, clips, images)
    watcher.step("prepare", len(prepared.due()) + sum(map(len, prepared.changed().values())))
    planned = tables.load_pairs(root)
    watcher.step("generate", read_generated(root, config, prepared, planned).ahead())


def _due(root: Store, config: RunConfig, clips: Sequence[SourceFile], images: Sequence[SourceFile]) -> dict[str, set[str]]:
    """Stage -> units that are due, by what is there and what is planned now."""
    prepared = read_prepared(root, config, clips, images)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for item in [*prepared.due(), *read_generated(root, config, prepared, tables.load_pairs(root)).due()]:
        found[item["stage"]].add(item["unit"])
    return found


def _run_file(root: Store) -> dict[str, Any] | None:
    return read_run_file(root) if root.size("run.yaml") >= 0 else None


def _write_run_file(root: Store, config: RunConfig, base: Path, before: dict[str, Any] | None, watcher: Watcher) -> None:
    """run.yaml; warns where libraries differ from those that the run began with."""
    tombstones = read_tombstones(root)
    versions: dict[str, str] = {name: importlib.metadata.version(name) for name in _RECORDED}
    versions |= {d.name: d.version for name in ("onnxruntime", "onnxruntime-gpu") for d in importlib.metadata.distributions(name=name)}
    if before:
        began = before.get("versions", {})
        changed = [f"{n} {began[n]} -> {v}" for n, v in versions.items() if began.get(n, v) != v]
        if changed:
            watcher.say(f"warning: the run began with other versions; bytes may differ: {', '.join(changed)}")
        versions = began or versions
    prints = fingerprints(config)
    content = {
        "crosspair": importlib.metadata.version("crosspair"),
        "config": without_entries(asdict(config), lambda entry: absolute(entry, base) in tombstones),
        "fingerprint": digest(*(f"{k}={v}" for k, v in sorted(prints.items()))),
        "fingerprints": prints,
        "versions": versions,
        "history": remember(before, prints) if before else [],
    }
    root.write("run.yaml", yaml.safe_dump(content, sort_keys=False).encode())


def _prepare(
    root: Store,
    config: RunConfig,
    clips: Sequence[SourceFile],
    images: Sequence[SourceFile],
    watcher: Watcher,
    start: Callable[[], None],
    *,
    look_again: Set[str] | None = None,
) -> Prepared:
    """`look_again`: only these sources are looked at for changes of their files; by default all."""
    state = read_prepared(root, config, clips, images)
    prints = fingerprints(config)
    for stage, units in state.changed(look_again).items():
        if units:
            watcher.say(f"{len(units)} files have changed since they were looked at ({stage}): done again")
            Ledger(root).forget(stage, prints[stage], units)
            state = read_prepared(root, config, clips, images)
    for name, chain in (("prepare", _PREPARE), ("identity", _IDENTIFY)):
        due = [item for item in state.due() if any(item["stage"] in names for names in chain)]
        if due or name == "prepare":
            watcher.step(name, len(due))
        if due:
            start()
            run_graph(due, chain, root, config, watcher.unit)
            enforce(root, watcher.say)  # what was forgotten may be back under another name, or cut by other settings
            clips, images = (read_tombstones(root).let_in(sources) for sources in (clips, images))
            state = read_prepared(root, config, clips, images)
    # Also when nothing was due: the session that did the last unit may have been killed before it came to this.
    sweep(root, {"ingest": state.ingest, "faces": state.faces, "portraits": state.portraits, "identity": state.identity})
    save_prepared(root, state)
    return state


def _plan(root: Store, config: RunConfig, state: Prepared, watcher: Watcher, *, only_added: bool = False) -> Generated:
    """The plan with its next generations: one for what was added at one time, and, without `only_added`, one for what clips lack."""
    portraits = state.accepted_portraits
    clips = state.accepted_clips
    settings = config.pairs
    counts = {
        "clips": Counter(c.source.identity for c in clips),
        "portraits": Counter(p.source.identity for p in portraits),
    }
    people = identity_rows(state.people, tables.load(root, "identities"), config.splits, settings.seed, counts)
    tables.save(root, "identities", people)  # before the pairs: whoever is in one has a split that is kept
    for person in state.people:
        for other, alike in person.doubts:
            if person.name < other:  # said of both
                watcher.say(f"warning: the manifest says two people, the network says one: {person.name} and {other} ({alike:.2f})")
    earlier = tables.pairs(root)
    before = read_generated(root, config, state, planned_pairs(earlier))
    next_generation = partial(
        grow,
        clips,
        portraits,
        split={r["identity"]: r["split"] for r in people},
        rules=settings,
        resting={p.pair for p in before.planned} - {p.pair for p in before.live()},
        embeddings=embeddings_of(state.people, likenesses(state.identity), config.identity) if settings.asks_for_similarity else None,
    )
    added = tables.load(root, "added")
    plan = deal_added(added, earlier, portraits, next_generation)
    if added:
        tables.save(root, "added", added)  # before the plan: what is dealt in a generation that is not there is dealt again
    if not only_added:
        plan = with_generation(plan, next_generation(plan))
    watcher.step("plan", len(plan) - len(earlier))
    tables.save_pairs(root, plan)
    return read_generated(root, config, state, planned_pairs(plan))


def _generate(root: Store, config: RunConfig, prepared: Prepared, watcher: Watcher, start: Callable[[], None]) -> Generated:
    planned = tables.load_pairs(root)
    state = read_generated(root, config, prepared, planned)
    due = state.due()
    watcher.step("generate", state.ahead())
    if due:
        start()
        config = on_this_cluster(config, _GENERATE, watcher.say)
        run_graph(due, _GENERATE, root, config, watcher.unit)
        state = read_generated(root, config, prepared, planned)
    sweep(root, {"motion": state.motion, "reenact": state.reenact, "regions": state.regions})
    save_outcomes(root, prepared, state)
    return state


def _pack(root: Store, config: RunConfig, state: Generated, watcher: Watcher) -> None:
    weights = weights_digest(config)
    samples = [sample_of(root, state, p, weights) for p in state.live() if state.verdict(p)[0] == Outcome.DONE]
    watcher.step("pack", len(samples))
    folder = root.sub(f"shards/{config.set_name}")
    with_scores = bool(config.controls.expressions)
    index = pack(folder, samples, max_mb=config.shards.max_mb, seed=config.pairs.seed, progress=watcher.say, expressions=with_scores)
    tar_of = dict(zip(index["sample"].to_pylist(), index["tar"].to_pylist(), strict=True))
    rows = _of_other_sets(root, config, state, watcher)
    for p in state.planned:
        outcome, reason = state.verdict(p)
        fields = {k: v for k, v in asdict(p).items() if k != "generation"} | state.people(p) | lineage_of(state, p, weights)
        scores = state.regions[p.pair].data if p.pair in state.regions else {}
        rows.append(
            {**fields, "set": config.set_name, "outcome": outcome, "reason": reason, "tar": tar_of.get(p.pair, ""), "scores": scores}
        )
    tables.save(root, "samples", rows)


def _of_other_sets(root: Store, config: RunConfig, state: Generated, watcher: Watcher) -> list[dict[str, Any]]:
    """Rows of the samples of the pair sets that were made with other settings: they stand as they are."""
    others = [name for name in sets_of(root) if name != config.set_name]
    rows = [r for r in tables.load(root, "samples") if r["set"] in others] if others else []
    live = {p.pair for p in state.live()}
    for name, n in Counter(r["set"] for r in rows if r["tar"] and r["pair"] not in live).items():
        watcher.say(f"warning: pair set {name} still holds {n} samples of pairs that rest now; they go when its own config is run")
    return rows
