"""Truth: pairs of real clips are accepted, and what is planted into their driving videos is rejected for what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from drivenpairs import (
    Studio,
    as_long_as,
    frozen,
    jittering,
    mirrored,
    shifted,
    stuck,
    with_black_block,
)

from schemas.arrays import decode_arrays
from schemas.units import Driving
from stages.facenet import FaceNet
from stages.quality import GATES, QualityGates, decide, worst
from stages.regions import TRUTH_FILE, RegionsStage

PAIRS = {  # the beginning of a clip's name, first frame and length; of a portrait's
    "smile": ("lp_d0", 0, 60, "aws_photo1_frontal"),
    "turn": ("lp_d3", 60, 60, "mediapipe_sergey"),
    "speech": ("sadtalker_WDA", 0, 60, "skimage_astronaut"),
}
FAULTS: dict[str, tuple[Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], str]] = {
    # name -> what becomes of a pair's frames (own, another pair's, the target's), and for what reason it is then rejected
    "late by 3 frames": (lambda own, other, a: shifted(own, 3), "out_of_step"),
    "early by 3 frames": (lambda own, other, a: shifted(own, -3), "out_of_step"),
    "frozen": (lambda own, other, a: frozen(own), "frozen"),
    "stuck half-way": (lambda own, other, a: stuck(own), "frozen"),
    "mirrored": (lambda own, other, a: mirrored(own), "mirrored"),
    "another clip's motion": (lambda own, other, a: as_long_as(other, len(own)), "wrong_motion"),
    "A instead of B": (lambda own, other, a: a, "wrong_person"),
    "jitter": (lambda own, other, a: np.stack(list(jittering(own))), "jitter"),
    "a black block on the face": (lambda own, other, a: with_black_block(own, (110, 110), first=20), "black_block"),
    "a black block beside it": (lambda own, other, a: with_black_block(own, (8, 8)), "black_block"),
}


@dataclass(frozen=True)
class Stage:
    """The real pairs, and the stage that scores them."""

    studio: Studio
    pairs: dict[str, Driving]
    score: RegionsStage

    def scores(self, driving: Driving) -> dict[str, float]:
        return self.score(driving, self.studio.out(f"{driving.folder}-regions"))[0]

    def with_fault(self, pair: str, fault: str) -> Driving:
        names = list(self.pairs)
        other = self.pairs[names[(names.index(pair) + 1) % len(names)]]
        own = self.pairs[pair]
        frames = FAULTS[fault][0](*(self.studio.frames(d) for d in (own, other)), self.studio.target_frames(own))
        return self.studio.with_frames(own, fault.replace(" ", "-"), frames)


def stage_of(pairs: dict[str, tuple[str, int, int, str]], root: Path, shared: Path) -> Stage:
    studio = Studio(root, shared)
    made = {name: studio.driving(studio.clip(clip, *span), studio.portrait(who)) for name, (clip, *span, who) in pairs.items()}
    return Stage(studio, made, RegionsStage(None, FaceNet(shared / "models" / "faceid" / "MobileFaceNet.onnx", "imagenet")))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Stage:
    return stage_of(PAIRS, tmp_path_factory.mktemp("truth"), shared)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_as_it_was_made_is_accepted(stage: Stage, pair: str) -> None:
    scores = stage.scores(stage.pairs[pair])
    assert decide(scores, QualityGates()).reason == "", scores
    assert worst(scores, QualityGates())[0] <= 1
    assert {gate.score for gate in GATES} <= scores.keys()
    assert all(np.isfinite(v) and isinstance(v, float) for v in scores.values()), scores


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_planted_fault_is_rejected_for_what_it_is(stage: Stage, pair: str, fault: str) -> None:
    scores = stage.scores(stage.with_fault(pair, fault))
    assert decide(scores, QualityGates()).reason == FAULTS[fault][1], scores
    assert worst(scores, QualityGates())[0] > 1


def test_what_the_scores_are_made_of_is_kept_frame_by_frame(stage: Stage) -> None:
    driving = stage.pairs["turn"]
    out = stage.studio.out("details")
    scores, _ = stage.score(driving, out)
    details = decode_arrays((stage.studio.root / "details" / TRUTH_FILE).read_bytes())
    assert all(v.dtype == np.float32 and v.shape == (driving.pair.clip.frames,) for v in details.values())
    assert details["pose_error_deg"].mean() == pytest.approx(scores["pose_error_deg"], abs=1e-3)
    assert np.abs(details["mouth_target"] - details["mouth_driving"]).mean() == pytest.approx(scores["mouth_error"], abs=1e-3)
    assert details["hole"].max() == pytest.approx(scores["hole"]) and details["torn"].max() == pytest.approx(scores["torn"])


def test_without_an_identity_network_nobody_is_taken_for_another(stage: Stage) -> None:
    scores, _ = RegionsStage()(stage.pairs["smile"], stage.studio.out("plain"))
    assert not any(name.startswith("csim") for name in scores)
    assert decide(scores, QualityGates()).accepted
