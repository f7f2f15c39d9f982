"""The leak probe over a run's pair set: the same samples each time, of as many performers as there are, measured once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from smallworld import Finished

from pipeline import leak
from pipeline.leak import LeakConfig, kept_leak, leak_of
from pipeline.report import write_report
from schemas.regions import REGIONS
from schemas.store import open_store
from stages.leak import ALL

CONFIG = LeakConfig(samples=3, frames=32)


def row(sample: str, performer: str, frames: int = 60) -> dict[str, object]:
    return {"sample": sample, "performer": performer, "frames": frames}


def test_samples_are_of_as_many_performers_as_there_are() -> None:
    rows = [row(f"s{k}", "abcdd"[k % 5]) for k in range(40)] + [row("short", "e", frames=10)]
    chosen = leak._chosen(rows, LeakConfig(samples=8))
    assert len({r["sample"] for r in chosen}) == 8
    assert Counter(r["performer"] for r in chosen) == dict.fromkeys("abcd", 2)
    assert leak._chosen(rows[::-1], LeakConfig(samples=8)) == chosen
    assert leak._chosen(rows, LeakConfig(samples=8, seed=1)) != chosen
    assert len(leak._chosen(rows, LeakConfig(samples=100))) == 40


def test_a_runs_pair_set_has_figures_of_each_region_in_its_report(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leak, "LeakConfig", lambda: CONFIG)
    text = Path(write_report(copied)).read_text()
    assert "What the driving pixels of <code>meshwarp</code> tell of A" in text
    kept = kept_leak(open_store(copied), "meshwarp")
    assert [f.region for f in kept.figures] == [*REGIONS, ALL] and 1 <= kept.performers <= kept.samples <= 3
    for figure in kept.figures:
        assert f'<td class="n">{figure.driving:.3f}</td>' in text
        assert -1 <= figure.driving <= 1 and 0 < figure.p <= 1
        assert np.isnan([figure.low, figure.high]).all(), "so few performers have no interval"
    assert "nan" not in text.lower().split("tell of a", 1)[1].split("</table>", 1)[0]
    assert repr(leak_of(finished.shards, CONFIG)) == repr(kept), "measured again it is the same"

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(leak, "_leak", never)
    assert repr(kept_leak(open_store(copied), "meshwarp", CONFIG)) == repr(kept)
    with pytest.raises(AssertionError, match="measured again"):
        kept_leak(open_store(copied), "meshwarp", replace(CONFIG, seed=5))
    (copied / "report" / "leak-meshwarp.json").write_text("{")
    with pytest.raises(AssertionError, match="measured again"):
        kept_leak(open_store(copied), "meshwarp", CONFIG)


def test_large_frames_are_made_smaller_with_their_points(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(finished.shards)
    first = leak.read_index(store).to_pylist()[0]
    frames, points = leak._frames(store, first, leak.TARGET, 3)
    monkeypatch.setattr(leak, "_MAX_SIDE_PX", 64)
    small, fewer = leak._frames(store, first, leak.TARGET, 3)
    assert frames.shape == (3, 128, 128, 3) and small.shape == (3, 64, 64, 3)
    np.testing.assert_allclose(fewer[..., :2] + 0.5, (points[..., :2] + 0.5) / 2, atol=1e-4)
