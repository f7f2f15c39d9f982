"""A run that knows who is who: it measures once, links, finds copies, keeps splits, and is as it was without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from faceclips import moving_face, photograph, write_clip
from listed import list_sources
from PIL import Image
from smallworld import Finished, Silent, World
from tinynet import tiny_network

from pipeline import linked as linked_module
from pipeline.config import RunConfig, fingerprints
from pipeline.identities import Person
from pipeline.ledger import Ledger, LedgerWriter
from pipeline.people import identity_rows
from pipeline.plan import split_of
from pipeline.replay import find
from pipeline.run import foresee_run, run
from pipeline.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES
from pipeline.status import status
from pipeline.tables import SCHEMAS, load
from pipeline.verify import verify
from schemas.config import parse_config
from schemas.ids import file_digest, sha256_of
from schemas.outcomes import Outcome
from schemas.sample import parquet_bytes
from stages.identity import IdentityConfig

CROSSPAIR = Path(sys.executable).with_name("crosspair")
SPLITS = {"train": 0.5, "val": 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people in four files that say nothing: hopper twice, in two sizes and rates; the astronaut; a re-encoded copy of hers; stills."""
    base = tmp_path_factory.mktemp("who")
    write_clip(base / "clips/a_hopper.mp4", moving_face("hopper", 30, face_px=130.0))
    write_clip(base / "clips/b_astronaut.mp4", moving_face("astronaut", 30))
    write_clip(base / "clips/c_hopper.mp4", moving_face("hopper", 44, wh=(400, 360), face_px=150.0), 30)
    write_clip(base / "clips/d_copy.mp4", moving_face("astronaut", 30, wh=(480, 480), face_px=180.0))
    (base / "images").mkdir()
    Image.fromarray(photograph("astronaut")).save(base / "images/astronaut.png")
    tiny_network(base / "net.onnx")
    return base


def config(name: str, **more: object) -> RunConfig:
    given = {"run": name, "clips": ["clips"], "portraits": ["images"], "video": {"size_px": 128}, "ray": {"mode": "local"}, **more}
    return parse_config(RunConfig, given)


IDENTITY = {"model": "net.onnx", "min_similarity": 0.8, "min_similarity_in_file": 0.5}


@pytest.fixture(scope="module")
def known(base: Path) -> tuple[Path, Silent]:
    """A run with a network, up to its plan."""
    watcher = Silent()
    run(config("known", identity=IDENTITY), base=base, watcher=watcher, until="plan")
    return base / "known", watcher


@pytest.fixture
def copied(known: tuple[Path, Silent], base: Path, tmp_path: Path) -> str:
    shutil.copytree(known[0], tmp_path / "run")
    return str(tmp_path / "run")


def who(root: Path) -> dict[str, str]:
    """File -> identity, "" for what is not accepted."""
    rows = [*load(root, "clips"), *(p for p in load(root, "portraits") if not p["clip"])]
    return {Path(r["uri"]).name: r["identity"].split("-")[0] if r["outcome"] == "done" else "" for r in rows}


def test_files_of_one_person_become_one_identity(known: tuple[Path, Silent]) -> None:
    assert who(known[0]) == {
        "a_hopper.mp4": "a_hopper",
        "b_astronaut.mp4": "b_astronaut",
        "c_hopper.mp4": "a_hopper",
        "d_copy.mp4": "",
        "astronaut.png": "b_astronaut",
    }
    rows = load(known[0], "identities")
    assert [(r["clips"], r["portraits"], r["linked"], r["same_as"], len(r["members"])) for r in rows] == [
        (2, 2, "embedding", "", 2),
        (1, 2, "embedding", "", 2),
    ]
    assert all(0.8 < r["agreement"] <= 1 for r in rows)


def test_nobody_is_paired_with_himself(known: tuple[Path, Silent]) -> None:
    pairs = load(known[0], "pairs")
    assert pairs and all(p["performer"] != p["appearance"] for p in pairs)
    assert {p["performer"] for p in pairs} == {r["identity"] for r in load(known[0], "identities")}
    hopper = {c["clip"] for c in load(known[0], "clips") if "hopper" in c["uri"]}
    stills = {p["portrait"] for p in load(known[0], "portraits") if p["clip"] in hopper}
    assert len(hopper) == len(stills) == 2 and not any(p["clip"] in hopper and p["portrait"] in stills for p in pairs)


def test_a_copy_is_rejected_and_says_of_what(known: tuple[Path, Silent]) -> None:
    clips = {Path(c["uri"]).name: c for c in load(known[0], "clips")}
    copy = clips["d_copy.mp4"]
    assert (copy["outcome"], copy["reason"]) == ("rejected", "near_duplicate")
    assert copy["near_duplicate_of"] == clips["b_astronaut.mp4"]["clip"] and clips["b_astronaut.mp4"]["near_duplicate_of"] == ""
    assert {Path(s["uri"]).name: s["reason"] for s in load(known[0], "sources")}["d_copy.mp4"] == "near_duplicate"
    message = next(o["message"] for o in load(known[0], "outcomes") if o["unit"] == copy["clip"] and o["stage"] == "gates")
    assert clips["b_astronaut.mp4"]["clip"] in message


def test_each_clip_and_portrait_is_a_unit_of_the_stage(known: tuple[Path, Silent]) -> None:
    root, watcher = known
    assert Counter(stage for stage, _, _ in watcher.units)["identity"] == 5
    assert watcher.steps == [("prepare", 5), ("identity", 5), ("plan", len(load(root, "pairs")))]
    state = status(root)
    assert state["stages"]["identity"] == {"done": 5, "rejected": 0, "failed": 0, "quarantined": 0, "left": 0}
    rows = [o for o in load(root, "outcomes") if o["stage"] == "identity"]
    assert Counter(o["kind"] for o in rows) == {"clip": 4, "portrait": 1} and all(o["parent"] and o["source_uri"] for o in rows)
    assert all(c["scores"]["identity_agreement"] > 0.9 for c in load(root, "clips"))
    assert verify(root) == []


def test_a_unit_of_the_stage_can_be_replayed(known: tuple[Path, Silent]) -> None:
    for kind in ("clips", "portraits"):
        unit = next(r[kind[:-1]] for r in load(known[0], kind) if kind == "clips" or not r["clip"])
        record = next(r for r in Ledger(known[0]).history("identity") if r.unit == unit)
        assert find(known[0], unit, "identity").run()["data"] == record.data
    shown = subprocess.run([CROSSPAIR, "replay", known[0], unit, "--stage", "identity"], capture_output=True, text=True, check=True)
    assert '"agreement"' in shown.stdout and "embedding" not in shown.stdout  # biometric data is not for screens and logs


def test_units_of_sources_that_were_replaced_are_not_left_to_do(copied: str) -> None:
    record = next(r for r in Ledger(copied).history("faces") if r.children)
    writer = LedgerWriter(copied, "faces")
    writer.add(replace(record, unit="of a file that was replaced", children=[record.children[0] | {"id": "gone"}]))
    writer.flush()
    assert status(copied)["stages"]["identity"]["left"] == 0


def test_who_could_not_be_looked_at_is_counted(copied: str, base: Path) -> None:
    """All records of the stage taken away, but for one that failed."""
    record = next(iter(Ledger(copied).history("identity")))
    shutil.rmtree(Path(copied) / "ledger" / "identity")
    writer = LedgerWriter(copied, "identity")
    writer.add(replace(record, outcome=Outcome.FAILED, reason="error", data={}))
    writer.flush()
    summary = run(config(copied, identity=IDENTITY), base=base, watcher=Silent(), until="plan")
    assert summary.unidentified == 1


def test_run_again_it_does_nothing(copied: str, base: Path) -> None:
    before = {p: file_digest(p) for p in Path(copied).rglob("*") if p.is_file()}
    watcher = Silent()
    run(config(copied, identity=IDENTITY), base=base, watcher=watcher, until="plan")
    after = {p: file_digest(p) for p in Path(copied).rglob("*") if p.is_file()}
    assert watcher.units == [] and {p.name for p in before if after.get(p) != before[p]} <= {"run.yaml"}


def test_nobody_is_linked_again_while_nothing_has_changed(copied: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("linked again")

    monkeypatch.setattr(linked_module, "link", never)
    tables = {name: load(Path(copied), name) for name in SCHEMAS}
    status(copied)
    foresee_run(config(copied, identity=IDENTITY), base=base, watcher=Silent())
    run(config(copied, identity=IDENTITY), base=base, watcher=Silent(), until="plan")
    assert {name: load(Path(copied), name) for name in SCHEMAS} == tables
    with pytest.raises(AssertionError, match="linked again"):
        foresee_run(config(copied, identity=IDENTITY | {"min_similarity": 0.9}), base=base, watcher=Silent())


def units_done(copied: str, base: Path, **identity: object) -> tuple[set[str], list[str]]:
    watcher = Silent()
    run(config(copied, identity=IDENTITY | identity), base=base, watcher=watcher, until="plan")
    assert verify(Path(copied)) == []
    return {stage for stage, _, _ in watcher.units}, watcher.said


def test_a_threshold_measures_nothing_again(copied: str, base: Path) -> None:
    done, said = units_done(copied, base, min_similarity=0.9999)
    assert done == set()
    assert said == ["identity.min_similarity 0.8 -> 0.9999: people are linked anew, from the embeddings that are there"]
    assert who(Path(copied))["c_hopper.mp4"] == "c_hopper" and who(Path(copied))["astronaut.png"] == "astronaut"
    done, said = units_done(copied, base, max_hash_distance=0.0)
    assert done == set() and any("near duplicates are looked for anew" in s for s in said)
    assert who(Path(copied))["d_copy.mp4"] == "b_astronaut"


def test_another_network_measures_again_and_cuts_no_face(copied: str, base: Path) -> None:
    tiny_network(base / "other.onnx", seed=1)
    watcher = Silent()
    foresee_run(config(copied, identity=IDENTITY | {"model": "other.onnx"}), base=base, watcher=watcher)
    assert [s for s in watcher.said if s.startswith("identity: 5 again: identity.digest")]
    assert dict(watcher.steps)["prepare"] == 5
    assert units_done(copied, base, model="other.onnx")[0] == {"identity"}
    assert units_done(copied, base, frames=3)[0] == {"identity"}
    assert units_done(copied, base)[0] == set()


def test_without_the_network_the_files_are_the_people_again(copied: str, base: Path) -> None:
    watcher = Silent()
    foresee_run(config(copied), base=base, watcher=watcher)
    assert not [s for s in watcher.said if s.startswith("identity: ") and "again" in s]
    assert [s.split(":")[0] for s in watcher.said if "who is who" in s] == [f"identity.model {base / 'net.onnx'} -> none"]
    watcher = Silent()
    run(config(copied), base=base, watcher=watcher, until="plan")
    assert watcher.units == [] and [name for name, _ in watcher.steps] == ["prepare", "plan"]
    assert {Path(r["uri"]).name: r["identity"].rsplit("-", 1)[0] for r in load(Path(copied), "clips")} == {
        f"{name}.mp4": name for name in ("a_hopper", "b_astronaut", "c_hopper", "d_copy")
    }


def test_a_network_that_comes_later_keeps_the_earlier_split(base: Path, tmp_path: Path) -> None:
    """First by files, hopper in two splits. Then the files are one person, in the split of the one first seen; pairs in the other rest."""
    split = {Path(s.uri).stem: s.identity for s in list_sources(["clips", "images"], CLIP_SUFFIXES | IMAGE_SUFFIXES, base)}

    def splits(seed: int) -> dict[str, str]:
        return {who: split_of(identity, SPLITS, seed) for who, identity in split.items()}

    def fits(found: dict[str, str]) -> bool:
        return (
            len({found[w] for w in ("a_hopper", "b_astronaut", "astronaut")}) == 1
            and found["a_hopper"] != found["c_hopper"] == found["d_copy"]
        )

    seed = next(s for s in range(999) if fits(splits(s)))
    first, other = splits(seed)["a_hopper"], splits(seed)["c_hopper"]
    name, more = str(tmp_path / "late"), {"splits": SPLITS, "pairs": {"per_clip": 3, "seed": seed}}
    run(config(name, **more), base=base, watcher=Silent(), until="plan")
    before = {r["identity"]: r for r in load(Path(name), "identities")}
    assert len(before) == 5 and all(r["linked"] == "file" and r["agreement"] == -1 for r in before.values())
    old = load(Path(name), "pairs")
    linked = config(name, **more, identity=IDENTITY | {"near_duplicates": "never"})
    summary = run(linked, base=base, watcher=Silent(), until="plan")
    after = {r["identity"]: r for r in load(Path(name), "identities")}
    assert after.keys() == before.keys() and all(after[i]["split"] == before[i]["split"] for i in after)
    gone = {i.rsplit("-", 1)[0]: r["same_as"].rsplit("-", 1)[0] for i, r in after.items() if r["same_as"]}
    assert gone == {"b_astronaut": "astronaut", "c_hopper": "a_hopper", "d_copy": "astronaut"}
    now = {r["pair"]: r for r in load(Path(name), "pairs")}
    assert all(now[r["pair"]] == r for r in old)
    assert Counter(r["split"] for r in old) == {first: 4, other: 2}  # one of the four is of her clip and her photograph
    assert summary.pairs == {"left": 3 + 2}
    assert {r["split"] for r in now.values() if r["generation"] == 1} == {first}
    late = {c["clip"] for c in load(Path(name), "clips") if Path(c["uri"]).name in ("c_hopper.mp4", "d_copy.mp4")}
    assert {r["clip"] for r in now.values() if r["generation"] == 1} == late


def test_copies_are_found_without_a_network_when_asked_for(copied: str, base: Path) -> None:
    watcher = Silent()
    run(config(copied, identity={"near_duplicates": "always"}), base=base, watcher=watcher, until="prepare")
    assert {(stage, outcome) for stage, outcome, _ in watcher.units} == {("identity", "done")}
    assert {Path(c["uri"]).name for c in load(Path(copied), "clips") if c["reason"] == "near_duplicate"} == {"d_copy.mp4"}


def test_who_was_accepted_before_any_plan_is_known_too(base: Path, tmp_path: Path) -> None:
    """As after `--until prepare`, or a kill before the plan: a copy that is listed later and comes first by URI takes nobody's place."""
    for folder in ("clips", "images"):
        shutil.copytree(base / folder, tmp_path / folder)
    (tmp_path / "clips/d_copy.mp4").rename(tmp_path / "0_copy.mp4")
    settings = config("run", identity=IDENTITY | {"model": str(base / "net.onnx")})
    run(settings, base=tmp_path, watcher=Silent(), until="prepare")
    (tmp_path / "0_copy.mp4").rename(tmp_path / "clips/0_copy.mp4")
    run(settings, base=tmp_path, watcher=Silent(), until="prepare")

    def verdicts(**more: object) -> dict[str, str]:
        run(replace(settings, **more), base=tmp_path, watcher=Silent(), until="prepare")  # type: ignore[arg-type]
        return {Path(c["uri"]).name: c["reason"] for c in load(tmp_path / "run", "clips")}

    found = verdicts()
    assert {name for name, reason in found.items() if reason == "near_duplicate"} == {"0_copy.mp4"}
    # Moved, and moved back: who got in meanwhile is known too, and came later.
    assert not any(verdicts(identity=replace(settings.identity, max_hash_distance=0.0)).values())
    assert verdicts() == found
    scores = {Path(c["uri"]).name: c["scores"]["face_px"] for c in load(tmp_path / "run", "clips")}
    moved = verdicts(gates=replace(settings.gates, min_face_px=round((scores["b_astronaut.mp4"] + scores["0_copy.mp4"]) / 2)))
    assert (moved["b_astronaut.mp4"], moved["0_copy.mp4"]) == ("face_too_small", "")
    assert verdicts() == found


def test_a_copy_of_the_same_bytes_does_not_take_the_place_of_its_original_while_both_have_no_clip(base: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    shutil.copy(base / "clips/a_hopper.mp4", tmp_path / "clips/b.mp4")
    settings = config("run", portraits=[])

    def taken(**faces: float) -> set[str]:
        changed = replace(settings, faces=replace(settings.faces, **faces))  # type: ignore[arg-type]
        run(changed, base=tmp_path, watcher=Silent(), until="prepare")
        return {Path(c["uri"]).name for c in load(tmp_path / "run", "clips")}

    assert taken() == {"b.mp4"}
    shutil.copy(tmp_path / "clips/b.mp4", tmp_path / "clips/a.mp4")
    assert taken() == {"b.mp4"}
    assert taken(min_clip_s=5.0) == set()
    assert taken() == {"b.mp4"}


def test_names_of_the_manifest_that_the_network_takes_for_one_are_told_of(copied: str, base: Path) -> None:
    (base / "said.csv").write_text("uri,identity\nclips/a_hopper.mp4,grace\nclips/c_hopper.mp4,ann\nclips/b_astronaut.mp4,eileen\n")
    watcher = Silent()
    run(config(copied, clips=["said.csv", "clips"], identity=IDENTITY), base=base, watcher=watcher, until="plan")
    rows = {r["identity"]: r for r in load(Path(copied), "identities") if r["clips"]}
    assert rows.keys() == {"grace", "ann", "eileen"} and rows["eileen"]["doubts"] == ""
    assert rows["grace"]["doubts"].startswith("ann (") and rows["ann"]["doubts"].startswith("grace (")
    said = [s for s in watcher.said if s.startswith("warning: the manifest says two people, the network says one: ")]
    assert len(said) == 1 and ": ann and grace (" in said[0]
    assert rows["eileen"]["linked"] == "embedding" and rows["eileen"]["name"] == "eileen"


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        ({"model": "none.onnx"}, "identity.model: .*none.onnx is not there"),
        ({"model": "images/astronaut.png"}, "astronaut.png: expected an ONNX file"),
        ({"model": "net.onnx", "digest": "0" * 64}, "identity.digest pins it"),
    ],
)
def test_a_network_that_cannot_serve_stops_the_run_at_once(base: Path, tmp_path: Path, identity: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(config(str(tmp_path / "never"), identity=identity), base=base, watcher=Silent())
    assert not (tmp_path / "never" / "run.yaml").exists()


def test_a_network_for_research_only_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copy(base / "net.onnx", tmp_path / "w600k_r50.onnx")
    strict = {"identity": {"model": str(tmp_path / "w600k_r50.onnx")}, "weights": {"allow_non_commercial": False}}
    with pytest.raises(ValueError, match=r"w600k_r50\.onnx: licensed for non-commercial research only"):
        run(config(str(tmp_path / "never"), **strict), base=base, watcher=Silent())


def test_fingerprints_hold_the_network_and_no_threshold() -> None:
    def prints(**identity: object) -> dict[str, str]:
        return fingerprints(RunConfig(run="r", clips="c", identity=IdentityConfig(**identity)))  # type: ignore[arg-type]

    plain, with_network = prints(), prints(model="a.onnx", digest="1")
    assert {k for k in plain if plain[k] != with_network[k]} == {"identity", "regions"}  # pairs are scored with it, too
    other_frames = prints(model="a.onnx", digest="1", frames=3)
    assert {k for k in plain if other_frames[k] != with_network[k]} == {"identity"}
    assert prints(near_duplicates="always")["regions"] == plain["regions"]
    assert with_network == prints(model="b.onnx", digest="1", min_similarity=0.9, max_hash_distance=1.0, min_agreement=0.1)
    for other in (prints(model="a.onnx", digest="2"), prints(model="a.onnx", digest="1", normalise="imagenet")):
        assert {k for k in plain if other[k] != with_network[k]} == {"identity", "regions"}


def test_a_worker_finds_the_network_that_the_run_began_with(base: Path, known: tuple[Path, Silent]) -> None:
    frozen = find(known[0], load(known[0], "clips")[0]["clip"], "identity").config.identity
    assert (frozen.model, frozen.digest) == (str(base / "net.onnx"), sha256_of(base / "net.onnx"))


# the table of identities


def rows_after(people: list[Person], before: list[dict], seed: int = 0) -> dict[str, dict]:
    found = identity_rows(people, before, SPLITS, seed, {"clips": Counter(), "portraits": Counter()})
    return {r["identity"]: r for r in found}


def person(identity: str, *members: str) -> Person:
    return Person(identity=identity, name="", linked="file", members=members, files=("",) * len(members))


def test_of_two_who_are_one_the_earlier_split_wins() -> None:
    a, b = next((f"a{k}", f"b{k}") for k in range(99) if split_of(f"a{k}", SPLITS, 0) != split_of(f"b{k}", SPLITS, 0))
    first = rows_after([person(a, "1", "2")], [])
    second = rows_after([person(a, "1", "2"), person(b, "3")], list(first.values()))
    assert (second[a]["split"], second[b]["split"]) == (split_of(a, SPLITS, 0), split_of(b, SPLITS, 0))
    assert (second[a]["seen"], second[b]["seen"]) == (0, 1)
    ann = next(f"ann{k}" for k in range(99) if split_of(f"ann{k}", SPLITS, 0) == split_of(b, SPLITS, 0))
    named = rows_after([person(ann, "1", "2", "3")], list(second.values()))
    assert named[ann]["split"] == second[a]["split"] and named[ann]["seen"] == 0
    assert named[a]["same_as"] == named[b]["same_as"] == ann and named[a]["members"] == []
    assert named[b]["split"] == second[b]["split"], "who comes back is where he was"
    assert rows_after([person(ann, "1", "2", "3")], list(named.values())) == named
    assert rows_after([person(a, "1", "2", "3")], list(second.values()))[a]["split"] == second[a]["split"]
    assert rows_after([person(b, "1", "2", "3")], list(second.values()))[b]["split"] == second[a]["split"], "whatever he is called"


def test_a_clip_that_changes_hands_takes_no_split_along() -> None:
    a, b = next((f"a{k}", f"b{k}") for k in range(99) if split_of(f"a{k}", SPLITS, 0) != split_of(f"b{k}", SPLITS, 0))
    first = rows_after([person(a, "1", "2")], [])
    second = rows_after([person(a, "1", "2"), person(b, "3")], list(first.values()))
    third = rows_after([person(a, "1"), person(b, "2", "3")], list(second.values()))
    assert {i: r["split"] for i, r in third.items()} == {i: r["split"] for i, r in second.items()}


def test_who_is_not_accepted_for_a_while_is_not_forgotten() -> None:
    first = rows_after([person("a", "1", "2"), person("b", "3")], [])
    second = rows_after([person("a", "1")], list(first.values()))
    assert second["a"]["members"] == ["1", "2"] and second["b"]["members"] == ["3"] and second["b"]["same_as"] == ""


def test_a_run_of_before_has_a_table_with_fewer_columns(finished: Finished, world: World, tmp_path: Path) -> None:
    root = tmp_path / "old"
    shutil.copytree(finished.root, root)
    later = {"identities": {"name", "linked", "agreement", "doubts", "seen", "same_as", "members"}}
    for name in ("identities", "clips", "portraits"):
        schema = pa.schema([f for f in SCHEMAS[name] if f.name not in later.get(name, {"near_duplicate_of"})])
        (root / f"tables/{name}.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(load(root, name), schema=schema)))
    assert verify(root) == []
    assert {r["identity"]: r["members"] for r in load(root, "identities")} == {r["identity"]: [] for r in load(finished.root, "identities")}
    watcher = Silent()
    world.run(str(root), watcher)
    assert watcher.units == []
    assert load(root, "identities") == load(finished.root, "identities") and verify(root) == []
