"""The report: one HTML file with a run's funnel, its rejections by reason, and a contact sheet of each pair to look at, worst first."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import yaml

from pipeline import tables
from pipeline.compare import every_two, sets_of
from pipeline.leak import kept_leak
from pipeline.ledger import Ledger, Record
from pipeline.storage import read_run_file
from pipeline.thresholds import Effect, effects
from schemas.arrays import decode_arrays
from schemas.config import parse_config
from schemas.outcomes import REASONS, Outcome
from schemas.regions import REGIONS, Regions, masked_driving, rasterise
from schemas.sample import DRIVING, INDEX_NAME, REGIONS_MEMBER, SOURCE, TARGET, decode_image, read_index, read_members
from schemas.store import Place, Store, open_store
from schemas.video import decode_video
from stages import faces, gates, quality, reenact, regions
from stages.gates import FaceGates
from stages.quality import QualityGates
from stages.truth import NOT_MEASURED

_COLUMNS = 6  # moments of a pair that are shown
_TILE_PX = 144
_MAX_SHEETS = 24  # of rejected pairs, and of accepted ones
_MAX_THUMBS = 6
_PLOTS = (  # title, curve of A ("" for none), curve of B; of truth.npz
    ("head pose error, degrees", "", "pose_error_deg"),
    ("yaw, degrees", "yaw_deg_target", "yaw_deg_driving"),
    ("mouth opening", "mouth_target", "mouth_driving"),
    ("eye opening", "eyes_target", "eyes_driving"),
    ("gaze to the side", "gaze_target", "gaze_driving"),
)
_PLOT_WH = (200, 44)
_COLOURS = ((80, 200, 120), (80, 200, 120), (255, 190, 70), (240, 90, 120))  # of the outlines, in the order of REGIONS


@dataclass(frozen=True)
class Plot:
    """A signal over time: its range, and lines as SVG has them, each of "a", the target, or of "b"; a lost frame is a gap."""

    title: str
    low: str
    high: str
    lines: list[tuple[str, str]]


@dataclass(frozen=True)
class Sheet:
    """A pair as a picture, and what is to be said of it."""

    key: str
    performer: str
    appearance: str
    reason: str  # of its rejection
    worst: str  # the score that is nearest to its threshold, or beyond it
    image: str  # data URI
    plots: list[Plot]
    scores: list[tuple[str, str]]


@dataclass(frozen=True)
class PairSet:
    name: str
    accepted: int
    rejected: int
    sheets: list[Sheet]


def write_report(place: Place) -> str:
    """Writes RUN/report/index.html; returns its place.

    Raises:
        ValueError: `place` is no run.
    """
    root = open_store(place)
    run_file = read_run_file(root)
    outcomes = tables.load(root, "outcomes")
    context = {
        "run": str(root).rsplit("/", 1)[-1],
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "config": yaml.safe_dump(run_file["config"], sort_keys=False),
        "funnel": _funnel(root, _set_name(run_file)),
        "reasons": _reasons(root, outcomes),
        "thresholds": _thresholds(root, run_file),
        "problems": [r for r in outcomes if r["outcome"] in (Outcome.FAILED, Outcome.QUARANTINED)],
        "seconds": _seconds(outcomes),
        "comparisons": every_two(root),
        "sets": list(_sets(root, run_file)),
        "regions": REGIONS,
        "plot_wh": _PLOT_WH,
        "leaks": [(name, kept_leak(root, name)) for name in sets_of(root)],
    }
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.j2").render(context)
    root.write("report/index.html", page.encode())
    return root.at("report/index.html")


def _set_name(run_file: dict[str, Any]) -> str:
    """Of the pair set that the run went on with last."""
    config: dict[str, Any] = run_file["config"]
    return str(config["shards"]["name"] or config["reenactor"]["engine"])


def _funnel(root: Store, set_name: str) -> list[dict[str, Any]]:
    """Rows of the funnel: what goes in, what is left at each step, as a share of the widest."""
    sources = tables.load(root, "sources")
    clips, samples = tables.load(root, "clips"), [s for s in tables.load(root, "samples") if s["set"] == set_name]
    stills = [s for s in sources if s["kind"] == "portrait"]
    files = [s for s in sources if s["kind"] == "clip"]

    def row(name: str, rows: list[dict[str, Any]], note: str) -> dict[str, Any]:
        return {"name": name, "n": len(rows), "done": sum(r["outcome"] == Outcome.DONE for r in rows), "note": note}

    rows = [
        row("source clips", files, "files listed; kept: at least one accepted clip"),
        row("clips", clips, "one person, one crop, constant rate"),
        row("portrait images", stills, "files listed; stills of clips serve too"),
        row("pairs", samples, "planned; kept: true enough to train on"),
    ]
    widest = max((r["n"] for r in rows), default=1) or 1
    return [{**r, "all_pct": 100 * r["n"] / widest, "done_pct": 100 * r["done"] / widest} for r in rows if r["n"]]


def _reasons(root: Store, outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rejections by reason, most frequent first, with the files behind them and what the first frames look like."""
    rejected = [r for r in outcomes if r["outcome"] == Outcome.REJECTED]
    counts = Counter(r["reason"] for r in rejected)
    clips = {c["clip"]: c for c in tables.load(root, "clips")}
    rows = []
    for reason, n in counts.most_common():
        mine = [r for r in rejected if r["reason"] == reason]
        files = sorted({Path(r["source_uri"]).name for r in mine})
        thumbs = [t for r in mine[: 3 * _MAX_THUMBS] if (t := _thumb(root, clips.get(r["unit"])))][:_MAX_THUMBS]
        stages = ", ".join(sorted({f"{r['stage']} ({r['kind']})" for r in mine}))
        rows.append({"reason": reason, "n": n, "meaning": REASONS[reason], "stages": stages, "files": files, "thumbs": thumbs})
    return rows


def _thresholds(root: Store, run_file: dict[str, Any]) -> list[tuple[str, list[Effect]]]:
    """Config section -> what its thresholds do to this run's clips, to its images of faces, and to its pairs."""
    found, config = [], run_file["config"]
    for section, table in (("gates", "clips"), ("portrait_gates", "portraits")):
        scores = [r["scores"] for r in tables.load(root, table)]
        found.append((section, effects(scores, gates.GATES, parse_config(FaceGates, config[section]))))
    pairs = [r["scores"] for r in tables.load(root, "samples") if r["scores"] and r["set"] == _set_name(run_file)]
    found.append(("quality", effects(pairs, quality.GATES, parse_config(QualityGates, config["quality"]))))
    return [(section, rows) for section, rows in found if rows]


def _thumb(root: Store, clip: dict[str, Any] | None) -> str:
    """The still of a rejected clip as a data URI, if it was cut."""
    try:
        still = root.read(f"{clip['folder']}/{clip['clip']}.source.png") if clip else b""
    except FileNotFoundError:
        still = b""
    return _data_uri(cv2.resize(decode_image(still), (96, 96), interpolation=cv2.INTER_AREA)) if still else ""


def _seconds(outcomes: list[dict[str, Any]]) -> list[tuple[str, int, float, float]]:
    """Stage, units, seconds of work, seconds a unit."""
    rows = []
    for stage in ("ingest", "faces", "portraits", "identity", "motion", "reenact", "regions"):
        seconds = [r["seconds"] for r in outcomes if r["stage"] == stage]
        if seconds:
            rows.append((stage, len(seconds), sum(seconds), sum(seconds) / len(seconds)))
    return rows


def _sets(root: Store, run_file: dict[str, Any]) -> Iterator[PairSet]:
    """Each pair set with sheets of its worst pairs, rejected ones first."""
    limits = parse_config(QualityGates, run_file["config"]["quality"])
    records = {stage: Ledger(root).read(stage, run_file["fingerprints"][stage]) for stage in ("reenact", "regions")}
    clips = {c["clip"]: c for c in tables.load(root, "clips")}
    pairs: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for pair in tables.load(root, "samples"):
        if pair["scores"]:
            pairs[pair["set"]].append(pair)
    own = _set_name(run_file)
    for name in sorted(pairs):
        folder = root.sub(f"shards/{name}")
        index = {r["sample"]: r for r in read_index(folder).to_pylist()} if folder.size(INDEX_NAME) >= 0 else {}
        ordered = sorted(pairs[name], key=lambda p: (-quality.worst(p["scores"], limits)[0], p["pair"]))
        rejected = [p for p in ordered if p["outcome"] == Outcome.REJECTED]
        accepted = [p for p in ordered if p["outcome"] == Outcome.DONE]
        sheets = []
        for pair in (*rejected[:_MAX_SHEETS], *accepted[:_MAX_SHEETS]):
            # the ledger's present records are those of the set that was made last; of an earlier one its tars are left
            measured = records["regions"].get(pair["pair"]) if name == own else None
            members: dict[str, bytes] = {}
            if pair["pair"] in index:
                members = read_members(folder, index[pair["pair"]], (SOURCE, TARGET, DRIVING, REGIONS_MEMBER))
            elif measured:
                members = _artifacts(root, pair["pair"], clips.get(pair["clip"]), records)
            sheets.append(_sheet(root, pair, members, measured, limits))
        yield PairSet(name, len(accepted), len(rejected), sheets)


def _artifacts(root: Store, pair: str, clip: dict[str, Any] | None, records: dict[str, dict[str, Record]]) -> dict[str, bytes]:
    """The members of a pair that is in no shard; none where some of them are gone."""
    if clip is None or pair not in records["reenact"]:
        return {}
    places = {
        SOURCE: f"{clip['folder']}/{clip['clip']}.{faces.STILL}",
        TARGET: f"{clip['folder']}/{clip['clip']}.{faces.TARGET}",
        DRIVING: f"{records['reenact'][pair].folder}/{reenact.DRIVING}",
        REGIONS_MEMBER: f"{records['regions'][pair].folder}/{regions.REGIONS_FILE}",
    }
    try:
        return {name: root.read(place) for name, place in places.items()}
    except FileNotFoundError:
        return {}


def _sheet(root: Store, pair: dict[str, Any], members: dict[str, bytes], measured: Record | None, limits: QualityGates) -> Sheet:
    try:
        details = decode_arrays(root.read(f"{measured.folder}/{regions.TRUTH_FILE}"), what=regions.TRUTH_FILE) if measured else {}
    except FileNotFoundError:
        details = {}
    used, score = quality.worst(pair["scores"], limits)
    shown = [(k.replace("_", " "), "not measured" if v == NOT_MEASURED else f"{v:.3g}") for k, v in sorted(pair["scores"].items())]
    return Sheet(
        key=pair["pair"],
        performer=pair["performer"],
        appearance=pair["appearance"],
        reason=pair["reason"],
        worst=f"{score.replace('_', ' ')}: {used:.0%} of what is allowed",
        image=_data_uri(contact_sheet(members)) if members else "",
        plots=list(_plots(details)),
        scores=shown,
    )


def _plots(details: dict[str, np.ndarray]) -> Iterator[Plot]:
    for title, a, b in _PLOTS:
        if b in details:
            curves = {name: details[column] for name, column in (("a", a), ("b", b)) if column}
            yield _plot(title, curves, np.nan if a else 0.0)


def _plot(title: str, curves: dict[str, np.ndarray], lowest: float) -> Plot:
    """Curves (T,) over time by name, "a" for the target and "b" for the driving video, on one scale that begins at `lowest` or below."""
    values = np.concatenate([[lowest], *(c[np.isfinite(c)] for c in curves.values())])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    width, height = _PLOT_WH
    lines = []
    for name, curve in curves.items():
        x = np.linspace(0, width, len(curve))
        y = height - 1 - (curve - low) * (height - 2) / max(high - low, 1e-6)
        for piece in np.split(np.arange(len(curve)), np.flatnonzero(~np.isfinite(curve))):
            points = " ".join(f"{x[k]:.1f},{y[k]:.1f}" for k in piece if np.isfinite(y[k]))
            lines.append((name, points))
    return Plot(title, f"{low:.3g}", f"{high:.3g}", lines)


def contact_sheet(members: dict[str, bytes], *, columns: int = _COLUMNS, tile_px: int = _TILE_PX) -> np.ndarray:
    """A sample as one picture, uint8 RGB: rows target, driving, regions, masked driving at `columns` moments; the source at the left."""
    source = decode_image(members[SOURCE])
    regions = Regions.decode(members[REGIONS_MEMBER])
    moments = np.linspace(0, len(regions.valid) - 1, columns).astype(int)
    target, driving = decode_video(members[TARGET]), decode_video(members[DRIVING])
    size = target.shape[1]
    rows: list[list[np.ndarray]] = [[], [], [], []]
    for k in moments:
        masks = rasterise(regions, int(k), size, dilate_px=size / 64)
        outlined = driving[k] // 2
        for outline, valid, colour in zip(regions.outlines[k], regions.valid[k], _COLOURS, strict=True):
            if valid:
                cv2.polylines(outlined, [np.rint(outline * 16).astype(np.int32)], True, colour, max(1, size // 128), cv2.LINE_AA, 4)
        for tiles, picture in zip(rows, (target[k], driving[k], outlined, masked_driving(driving[k], masks)), strict=True):
            tiles.append(_fit(picture, tile_px))
    grid = np.vstack([np.hstack(tiles) for tiles in rows])
    left = np.full((grid.shape[0], tile_px, 3), 128, np.uint8)
    left[:tile_px] = _fit(source, tile_px)
    return np.hstack([left, grid])


def _fit(picture: np.ndarray, tile_px: int) -> np.ndarray:
    return cv2.resize(picture, (tile_px, tile_px), interpolation=cv2.INTER_AREA)


def _data_uri(image: np.ndarray) -> str:
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert ok
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
