"""A run that asks for consent or for a licence looks at nothing that lacks it, and each sample says where it comes from."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from smallworld import EXPECTED, PEOPLE, Finished, Silent, World

from pipeline import tables
from pipeline.books import list_run
from pipeline.config import fingerprints, weights_digest
from pipeline.ledger import Ledger
from pipeline.pack import SampleFiles, pack
from pipeline.status import status
from pipeline.verify import diff, verify
from schemas.ids import content_digest
from schemas.sample import SampleInfo, read_index, read_members
from schemas.store import DiskStore
from stages.lineage import LineageConfig

CONSENT = LineageConfig(require_consent=True)


def outcomes(root: Path) -> dict[str, tuple[str, str]]:
    return {Path(r["uri"]).name: (r["outcome"], r["reason"]) for r in tables.load(root, "sources")}


def write_manifest(path: Path, world: World, said: dict[str, tuple[str, str]]) -> None:
    """Clip -> who it is and what is said of consent."""
    with path.open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["uri", "identity", "licence", "consent"])
        writer.writerows([world.base / f"clips/{name}.mp4", who, "public domain", consent] for name, (who, consent) in said.items())


def test_nothing_is_read_of_what_may_not_be_used(world: World) -> None:
    watcher = Silent()
    world.run("consent", watcher, until="prepare", lineage=CONSENT)
    root, allowed = world.base / "consent", {f"{name}.mp4" for name in PEOPLE}
    assert outcomes(root) == {name: EXPECTED[name] if name in allowed else ("rejected", "no_consent") for name in EXPECTED}
    assert {stage for stage, _, _ in watcher.units} == {"ingest", "faces"}
    looked_at = {Path(r.source_uri).name for r in Ledger(root).history("ingest")}
    assert looked_at == allowed and not list(Ledger(root).history("portraits"))
    state = status(root)
    assert state["stages"]["ingest"] == {"done": 4, "rejected": 8, "failed": 0, "quarantined": 0, "left": 0}
    assert state["stages"]["portraits"]["left"] == 0 and state["reasons"]["no_consent"] == 12
    assert verify(root) == []


def test_a_rule_that_comes_later_measures_nothing_again(finished: Finished, copied: Path, world: World) -> None:
    """Files that lose their place keep what is on record of them, and have it back when the rule goes."""
    watcher = Silent()
    summary = world.run(str(copied), watcher, lineage=LineageConfig(licences=["Public Domain"]))
    assert any(said.startswith("lineage.licences [] -> ") for said in watcher.said)
    assert {stage for stage, _, _ in watcher.units} <= {"motion", "reenact", "regions"}
    allowed = {f"{name}.mp4" for name in PEOPLE}
    assert outcomes(copied) == {n: EXPECTED[n] if n in allowed else ("rejected", "licence_not_allowed") for n in EXPECTED}
    assert summary.reasons == {"licence_not_allowed": 12}
    still = next(r for r in tables.load(copied, "portraits") if r["uri"].endswith("hopper.png"))
    assert (still["outcome"], still["reason"]) == ("rejected", "licence_not_allowed")
    assert still["portrait"] not in {r["portrait"] for r in read_index(copied / "shards/meshwarp").to_pylist()}
    resting = {r["pair"] for r in tables.load(copied, "samples") if r["portrait"] == still["portrait"]}
    assert resting and {r["reason"] for r in tables.load(copied, "samples") if r["pair"] in resting} == {"partner_gone"}
    assert verify(copied) == []
    assert status(copied)["stages"]["ingest"] == {"done": 4, "rejected": 8, "failed": 0, "quarantined": 0, "left": 0}
    watcher = Silent()
    world.run(str(copied), watcher)
    assert watcher.units == [] and outcomes(copied) == EXPECTED
    again = {r["sample"]: r["digest"] for r in read_index(copied / "shards/meshwarp").to_pylist()}
    assert {r["sample"]: r["digest"] for r in read_index(finished.shards).to_pylist()}.items() <= again.items()


def test_a_copy_with_consent_takes_the_place_of_a_file_without(world: World, copied: Path) -> None:
    """Whether the rule was there from the start or came later; going back, the file that was first has its clips again."""
    manifest = copied.parent / "clips.csv"
    said = {name: (who, "withdrawn" if name == "a_astronaut" else "yes") for name, who in PEOPLE.items()}
    write_manifest(manifest, world, said | {"d copy of 'a'": ("collins", "yes")})
    given = {"clips": [str(manifest)], "portraits": []}
    world.run(str(copied), until="prepare", lineage=CONSENT, **given)
    world.run(str(copied.parent / "fresh"), until="prepare", lineage=CONSENT, **given)
    clips = [{r["clip"]: (Path(r["uri"]).name, r["outcome"]) for r in tables.load(copied.parent / n, "clips")} for n in ("run", "fresh")]
    assert clips[0] == clips[1] and ("d copy of 'a'.mp4", "done") in clips[0].values()
    assert outcomes(copied)["a_astronaut.mp4"] == ("rejected", "no_consent")
    world.run(str(copied), until="prepare", **given)
    assert outcomes(copied)["a_astronaut.mp4"] == ("done", "") and outcomes(copied)["d copy of 'a'.mp4"] == ("rejected", "duplicate")


def test_an_emptied_cell_takes_a_consent_back_and_a_bare_name_does_not(copied: Path, world: World) -> None:
    empty, bare, name = copied.parent / "empty.csv", copied.parent / "bare.csv", f"{world.base}/clips/b_hopper.mp4"
    empty.write_text(f"uri,consent\n{name},\n")
    bare.write_text(f"uri\n{name}\n")

    def consents(*entries: str) -> set[str]:
        clips, _ = list_run(DiskStore(copied), replace(world.config, clips=list(entries), portraits=[]), world.base, save=False)
        return {s.consent for s in clips if s.uri == name}

    assert consents("clips") == consents(str(bare)) == {"not needed"}
    assert consents(str(empty)) == consents("clips", str(empty)) == {""}


def test_every_sample_and_row_says_where_it_comes_from(finished: Finished, world: World) -> None:
    content = {r["portrait"]: r["content"] for r in tables.load(finished.root, "portraits")}
    rows = {r["pair"]: r for r in tables.load(finished.root, "samples")}
    prints = fingerprints(world.config)
    for row in read_index(finished.shards).to_pylist():
        raw = json.loads(read_members(finished.shards, row, ("json",))["json"])
        assert raw["appearance_digest"] == content[row["portrait"]]
        assert raw["config_fingerprint"] == prints["regions"] and raw["driving_fingerprint"] == prints["reenact"]
        assert raw["weights_digest"] == "" and raw["crosspair_version"] == "0.1.0"
        shared = raw.keys() & rows[row["sample"]].keys()
        assert {k: rows[row["sample"]][k] for k in shared} == {k: raw[k] for k in shared} and len(shared) == 17
    clips = pq.read_table(finished.root / "tables/clips.parquet").to_pylist()
    assert {(r["licence"], r["consent"]) for r in clips} == {("public domain", "not needed")}
    assert None not in {v for r in rows.values() for v in r.values() if not isinstance(v, dict)}


def test_weights_have_one_digest_and_an_engine_without_them_has_none(world: World) -> None:
    assert weights_digest(world.config) == ""
    with_weights = [
        replace(world.config, reenactor=replace(world.config.reenactor, engine="liveportrait", models="m", digests={"appearance": d}))
        for d in ("1", "2", "1")
    ]
    found = [weights_digest(c) for c in with_weights]
    assert found[0] == found[2] != found[1] and all(found)


def test_a_sample_of_an_older_version_is_read_and_written_anew_once(finished: Finished, tmp_path: Path) -> None:
    row = read_index(finished.shards).to_pylist()[0]
    members = read_members(finished.shards, row, tuple(m["name"] for m in row["members"]))
    raw = json.loads(members["json"])
    new = {"appearance_digest", "weights_digest", "config_fingerprint", "crosspair_version"}
    older = SampleInfo.decode(json.dumps({k: v for k, v in raw.items() if k not in new}).encode())
    assert {getattr(older, n) for n in new} == {""} and older.driving_fingerprint == raw["driving_fingerprint"]
    store = DiskStore(tmp_path)
    for name, data in members.items():
        store.write(name, data)
    files = {n: (n, content_digest(d)) for n, d in members.items() if n != "json"}
    said: list[str] = []
    for info in (older, SampleInfo.decode(members["json"]), SampleInfo.decode(members["json"])):
        pack(tmp_path / "set", [SampleFiles(info, store, files, {})], max_mb=1, seed=0, progress=said.append)
    assert Counter(said) == {"train-000000.tar: 1 samples": 1, "train-000001.tar: 1 samples": 1}


def test_consent_that_is_taken_back_takes_the_samples_with_it(finished: Finished, copied: Path, world: World) -> None:
    manifest = copied.parent / "clips.csv"
    said = {name: "" if name == "b_hopper" else "yes" for name in PEOPLE}
    write_manifest(manifest, world, {name: (who, said[name]) for name, who in PEOPLE.items()})
    world.run(str(copied), lineage=CONSENT, clips=[str(manifest)], portraits=[])
    clip = next(r["clip"] for r in tables.load(finished.root, "clips") if r["uri"].endswith("b_hopper.mp4"))
    assert clip not in {r["clip"] for r in read_index(copied / "shards/meshwarp").to_pylist()}
    assert diff(copied, finished.root) and verify(copied) == []
