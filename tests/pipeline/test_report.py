"""The report: complete, self-contained, and drawn by a real browser."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from smallworld import Finished, World

from pipeline.report import contact_sheet, write_report
from pipeline.tables import load
from pipeline.thresholds import effects
from schemas.sample import DRIVING, REGIONS_MEMBER, SOURCE, TARGET, read_index, read_members
from stages import quality
from stages.gates import GATES, FaceGates
from stages.quality import QualityGates
from stages.truth import NOT_MEASURED

_BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1100,3000",
]


@pytest.fixture(scope="module")
def page(finished: Finished) -> Path:
    return Path(write_report(finished.root))


def test_names_every_reason_and_every_pair(finished: Finished, page: Path) -> None:
    text = page.read_text()
    for reason in finished.summary.reasons:
        assert f"<code>{reason}</code>" in text
    assert finished.summary.shards is not None
    for row in read_index(finished.summary.shards).to_pylist():
        assert row["sample"] in text


def test_says_what_each_threshold_does(page: Path) -> None:
    text = page.read_text()
    for gate in (*GATES, *(g for g in quality.GATES if not g.score.startswith("csim"))):
        assert f"<code>{gate.field}</code>" in text


def test_a_thresholds_effect_is_counted_with_the_others_and_alone() -> None:
    scores = [{"face_px": 50.0, "upscale": 1.0}, {"face_px": 50.0, "upscale": 9.0}, {"face_px": 200.0, "upscale": 9.0}, {"face_px": 200.0}]
    size, scale = effects(scores, GATES, FaceGates(min_face_px=96, max_upscale=3.0))
    assert (size.field, size.bound, size.closes, size.alone, size.measured) == ("min_face_px", 96, 2, 1, 4)
    assert (scale.field, scale.closes, scale.alone, scale.measured) == ("max_upscale", 2, 1, 3)
    assert size.quartiles == (50, 50, 125, 200, 200)
    assert effects([], GATES, FaceGates()) == []


def test_what_was_not_measured_of_a_pair_is_not_counted() -> None:
    scores = [{"lag_frames": NOT_MEASURED, "jitter_ratio": 1.0}, {"lag_frames": 3.0}, {"lag_frames": 0.0}]
    lag, jitter = effects(scores, quality.GATES, QualityGates(max_lag_frames=1.0))
    assert (lag.field, lag.closes, lag.alone, lag.measured) == ("max_lag_frames", 1, 1, 2)
    assert (jitter.field, jitter.closes, jitter.measured) == ("max_jitter_ratio", 0, 1)


def test_pairs_are_shown_worst_first_and_rejected_ones_too(finished: Finished, copied: Path, world: World) -> None:
    """With a threshold in the midst of what is there."""
    errors = sorted(s["scores"]["pose_error_deg"] for s in load(finished.root, "samples") if s["outcome"] == "done")
    limit = float(np.mean(errors[len(errors) // 2 - 1 : len(errors) // 2 + 1]))
    gates = QualityGates(max_pose_error_deg=limit)
    world.run(str(copied), quality=gates)
    text = Path(write_report(copied)).read_text()
    figures = text.split("<figure")[1:]
    pairs = {s["pair"]: s for s in load(copied, "samples") if s["scores"]}
    shown = [pairs[next(p for p in pairs if p in figure)] for figure in figures]
    assert len(shown) == len(pairs)
    rejected = [s["outcome"] == "rejected" for s in shown]
    assert 0 < sum(rejected) < len(shown) and rejected == sorted(rejected, reverse=True)
    for group in (True, False):
        used = [quality.worst(s["scores"], gates)[0] for s, out in zip(shown, rejected, strict=True) if out == group]
        assert used == sorted(used, reverse=True)
    for figure, out in zip(figures, rejected, strict=True):
        assert ("rejected: <code>pose_error</code>" in figure) == out
        assert figure.count("data:image/jpeg") == 1 and figure.count("<svg") == 5 and figure.count("<polyline") == 9


def test_needs_no_other_file_and_no_network(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert links
    assert all(link.startswith("data:image/") for link in links)
    for link in links:
        data = base64.b64decode(link.split(",", 1)[1])
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None


def test_sheet_shows_the_masked_driving_frame_and_nothing_else(finished: Finished) -> None:
    assert finished.summary.shards is not None
    row = read_index(finished.summary.shards).to_pylist()[0]
    side = row["size_px"]
    sheet = contact_sheet(read_members(finished.summary.shards, row, (SOURCE, TARGET, DRIVING, REGIONS_MEMBER)), columns=3, tile_px=side)
    assert sheet.shape == (4 * side, 4 * side, 3)
    driving, masked = sheet[side : 2 * side, side:], sheet[3 * side :, side:]
    lit = masked.any(-1)
    assert 0.005 < lit.mean() < 0.3  # eyes, nose and mouth are there, and little else
    assert (masked == driving)[lit].all()


@pytest.mark.skipif(_BROWSER is None, reason="no Chromium on this machine")
def test_is_drawn_by_a_browser(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "report.png"
    assert _BROWSER is not None
    command = [_BROWSER, *_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    picture = cv2.imread(str(shot))
    assert picture is not None
    assert picture.shape[1] == 1100
    used = (picture.std(axis=(1, 2)) > 1).nonzero()[0]
    assert used[-1] > 900, "the page ends early"
    assert len(np.unique(picture.reshape(-1, 3)[::97], axis=0)) > 200, "no pictures on the page"
