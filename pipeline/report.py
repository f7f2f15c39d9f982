"""The report: one HTML file with a run's funnel, its rejections by reason, and a contact sheet of each pair to look at."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import yaml

from pipeline import tables
from pipeline.leak import kept_leak
from pipeline.storage import read_run_file
from pipeline.thresholds import Effect, effects
from schemas.config import parse_config
from schemas.outcomes import REASONS, Outcome
from schemas.regions import REGIONS, Regions, masked_driving, rasterise
from schemas.sample import DRIVING, REGIONS_MEMBER, SOURCE, TARGET, decode_image, read_index, read_members
from schemas.store import Place, Store, open_store
from schemas.video import decode_video
from stages.gates import FaceGates

_COLUMNS = 6  # moments of a pair that are shown
_TILE_PX = 144
_MAX_SHEETS = 48
_MAX_THUMBS = 6
_COLOURS = ((80, 200, 120), (80, 200, 120), (255, 190, 70), (240, 90, 120))  # of the outlines, in the order of REGIONS


@dataclass(frozen=True)
class Sheet:
    """A pair as a picture, and what is to be said of it."""

    key: str
    performer: str
    appearance: str
    image: str  # data URI
    scores: list[tuple[str, str]]


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
        "funnel": _funnel(root),
        "reasons": _reasons(root, outcomes),
        "thresholds": _thresholds(root, run_file["config"]),
        "problems": [r for r in outcomes if r["outcome"] in (Outcome.FAILED, Outcome.QUARANTINED)],
        "seconds": _seconds(outcomes),
        "sets": [(folder.removeprefix("shards/"), *_sheets(root, folder)) for folder in root.folders("shards", depth=1)],
        "regions": REGIONS,
        "leaks": [(name, kept_leak(root, name)) for folder in root.folders("shards", depth=1) if (name := folder.removeprefix("shards/"))],
    }
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("report.html.j2").render(context)
    root.write("report/index.html", page.encode())
    return root.at("report/index.html")


def _funnel(root: Store) -> list[dict[str, Any]]:
    """Rows of the funnel: what goes in, what is left at each step, as a share of the widest."""
    sources = tables.load(root, "sources")
    clips, samples = tables.load(root, "clips"), tables.load(root, "samples")
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


def _thresholds(root: Store, config: dict[str, Any]) -> list[tuple[str, list[Effect]]]:
    """Config section -> what its thresholds do to this run's clips, and to its images of faces."""
    found = []
    for section, table in (("gates", "clips"), ("portrait_gates", "portraits")):
        gates = parse_config(FaceGates, config[section])
        if rows := effects([r["scores"] for r in tables.load(root, table)], gates):
            found.append((section, rows))
    return found


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


def _sheets(root: Store, name: str) -> tuple[int, list[Sheet]]:
    """How many samples the set holds, and sheets of the worst ones by head pose error."""
    folder = root.sub(name)
    rows = read_index(folder).to_pylist()
    scores = {s["pair"]: s["scores"] for s in tables.load(root, "samples")}
    worst = sorted(rows, key=lambda r: -r["pose_error_deg"])[:_MAX_SHEETS]
    sheets = []
    for r in worst:
        members = read_members(folder, r, (SOURCE, TARGET, DRIVING, REGIONS_MEMBER))
        image = contact_sheet(members)
        shown = [(k.replace("_", " "), "not measured" if v < -1 else f"{v:.3g}") for k, v in sorted(scores.get(r["sample"], {}).items())]
        sheets.append(Sheet(r["sample"], r["performer"], r["appearance"], _data_uri(image), shown))
    return len(rows), sheets


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
