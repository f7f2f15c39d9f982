"""Status: how far a run is, counted from its ledger while it works or after."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Set
from typing import Any

from pipeline import tables
from pipeline.ledger import STAGES, Ledger
from pipeline.storage import read_run_file
from schemas.config import parse_config
from schemas.outcomes import Outcome
from schemas.store import Place
from stages import lineage
from stages.identity import IdentityConfig


def status(root: Place) -> dict[str, Any]:
    """{"stages": {STAGE: {done, rejected, failed, quarantined, left}}, "reasons": {CODE: n}, "rate": ..., "seconds_left": ...}.

    `rate` is units per second of work time by stage; `seconds_left` is the time of one worker for what is left, -1 if not known.

    Raises:
        ValueError: `root` is no run.
    """
    run_file = read_run_file(root)
    prints = run_file["fingerprints"]
    outcomes = tables.load(root, "outcomes")
    # Of files that may not be used it does not count what is on record of them.
    barred = {(r["stage"], r["unit"]): r["reason"] for r in outcomes if r["stage"] in STAGES and r["reason"] in lineage.REASONS}
    records = {
        stage: {u: r for u, r in Ledger(root).read(stage, prints.get(stage, "")).items() if (stage, u) not in barred}
        for stage in STAGES  # an older run lacks one
    }
    identifies = parse_config(IdentityConfig, run_file["config"].get("identity", {})).measures
    expected = _expected(root, records, identifies, {r["unit"] for r in outcomes if r["kind"] == "pair" and _settled(r)})
    stages: dict[str, dict[str, int]] = {}
    reasons: Counter[str] = Counter()
    rate: dict[str, float] = {}
    left_s = 0.0
    for stage in STAGES:
        refused = {unit for of, unit in barred if of == stage}
        counts = Counter(r.outcome for r in records[stage].values())
        counts[Outcome.REJECTED] += len(refused)
        left = len(expected[stage] - set(records[stage]) - refused)
        stages[stage] = {**{o.value: counts[o] for o in Outcome}, "left": left}
        reasons.update(r.reason for r in records[stage].values() if r.reason)
        seconds = sum(r.seconds for r in records[stage].values())
        if seconds:
            rate[stage] = round(len(records[stage]) / seconds, 3)
            left_s += left * seconds / len(records[stage])
        elif left:
            left_s = float("inf")  # nothing of it is done yet, so nobody knows
    reasons.update(barred.values())
    reasons["duplicate"] = sum(r["reason"] == "duplicate" for r in outcomes)
    for r in outcomes:
        if r["stage"] in ("gates", "plan", "quality"):
            counts_by = stages.setdefault(r["stage"], {**dict.fromkeys((o.value for o in Outcome), 0), "left": 0})
            counts_by[r["outcome"]] += 1
            reasons.update([r["reason"]] if r["reason"] else [])
    return {
        "stages": stages,
        "reasons": {reason: n for reason, n in sorted(reasons.items()) if n},
        "rate": rate,
        "seconds_left": round(left_s, 1) if left_s < float("inf") else -1.0,
    }


def _settled(pair: dict[str, Any]) -> bool:
    """Whether a pair needs no more work though the stages have no record of it: it rests, or its clip's motion could not be made."""
    return pair["stage"] == "plan" or (pair["stage"] == "quality" and pair["outcome"] in (Outcome.FAILED, Outcome.QUARANTINED))


def _expected(root: Place, records: dict[str, dict[str, Any]], identifies: bool, settled: Set[str]) -> dict[str, set[str]]:
    """Units that each stage should have by the tables and by what the stage before it has made; `settled` ones need none."""
    sources = tables.load(root, "sources")
    pairs = [p for p in tables.load(root, "pairs") if p["pair"] not in settled]
    shots = {c["id"] for r in records["ingest"].values() for c in r.children}
    images = {s["source"] for s in sources if s["kind"] == "portrait"}
    made = [r for stage, units in (("faces", shots), ("portraits", images)) for u, r in records[stage].items() if u in units]
    return {
        "ingest": {s["source"] for s in sources if s["kind"] == "clip"},
        "faces": shots,
        "portraits": images,
        "identity": {c["id"] for r in made for c in r.children if identifies},
        "motion": {p["clip"] for p in pairs},
        "reenact": {p["pair"] for p in pairs},
        "regions": {u for u, r in records["reenact"].items() if r.outcome == Outcome.DONE},
    }


def as_json(state: dict[str, Any]) -> str:
    return json.dumps(state, indent=2)
