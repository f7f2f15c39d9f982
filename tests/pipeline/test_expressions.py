"""A run with an expression network: only regions and shards are made anew, and each sample then holds the scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from smallworld import Silent, World

from pipeline.config import ControlsConfig, fingerprints
from pipeline.engine import with_expressions
from pipeline.run import foresee_run
from schemas.ids import sha256_of
from schemas.sample import CONTROLS, SampleInfo, decode_controls, read_index, read_members

TASK = "models/mediapipe/face_landmarker_v2_with_blendshapes.task"


def test_samples_get_expression_scores_and_nothing_before_regions_is_done_again(copied: Path, world: World, shared: Path) -> None:
    controls = ControlsConfig(expressions=str(shared / TASK))
    config, foreseen = replace(world.config, run=str(copied), controls=controls), Silent()
    foresee_run(config, base=world.base, watcher=foreseen)
    digest = sha256_of(shared / TASK)
    assert [line for line in foreseen.said if "again" in line] == [f"regions: 8 again: controls.sha256  -> {digest}"]
    watcher = Silent()
    world.run(str(copied), watcher, controls=controls)
    assert {stage for stage, _, _ in watcher.units} == {"regions"}
    folder = copied / "shards" / "meshwarp"
    by_clip = {}
    for row in read_index(folder).to_pylist():
        members = read_members(folder, row, (CONTROLS, "json"))
        arrays, info = decode_controls(members[CONTROLS]), SampleInfo.decode(members["json"])
        target, driving = arrays["target_expressions"], arrays["driving_expressions"]
        assert target.shape == driving.shape == (info.frames, 52) and np.isfinite(target).all()
        assert 0 <= target.min() <= target.max() <= 1
        assert abs(target - driving).max() > 0.1  # two people
        np.testing.assert_array_equal(by_clip.setdefault(info.clip, target), target)
    assert len(by_clip) > 1
    values = list(by_clip.values())
    assert abs(values[0].mean(0) - values[1].mean(0)).max() > 0.1  # one clip's scores are not another's

    from datasets import load_dataset

    first = next(iter(load_dataset(str(folder), split="train", streaming=True)))
    assert np.shape(first["controls.npz"]["target_expressions"])[1] == 52


def test_the_network_is_part_of_the_fingerprint_and_can_be_pinned(world: World, tmp_path: Path, shared: Path) -> None:
    plain = fingerprints(world.config)
    (tmp_path / "face.task").write_bytes((shared / TASK).read_bytes())
    config = with_expressions(replace(world.config, controls=ControlsConfig(expressions="face.task")), tmp_path)
    assert config.controls.sha256 == sha256_of(shared / TASK) and config.controls.expressions == str(tmp_path / "face.task")
    changed = {stage for stage, value in fingerprints(config).items() if value != plain[stage]}
    assert changed == {"regions"}
    assert with_expressions(config, tmp_path) == config
    with pytest.raises(ValueError, match=r"controls\.sha256 pins 00"):
        with_expressions(replace(config, controls=replace(config.controls, sha256="0" * 64)), tmp_path)
    with pytest.raises(ValueError, match=r"gone\.task: not there"):
        with_expressions(replace(config, controls=ControlsConfig(expressions="gone.task")), tmp_path)
    assert with_expressions(world.config, tmp_path) == world.config
