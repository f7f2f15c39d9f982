"""A models folder becomes a run's graphs, or a sentence that names the file, what was expected, and the remedy."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import load, numpy_helper, save
from tinyweights import GRAPHS, SIDE, write_graph, write_graphs, write_official

from model.liveportrait_weights import BASE_FILES, RETARGETING_FILE
from pipeline import catalogue
from pipeline.catalogue import CATALOGUE, MIT, NON_COMMERCIAL, forbid_non_commercial, of_layout, sha256_of
from pipeline.models_folder import Row, survey
from pipeline.weights import Weights, export, resolve

OFFICIAL_FILES = [*BASE_FILES.values(), RETARGETING_FILE]
NEEDED = ["appearance_feature_extractor.onnx", "motion_extractor.onnx", "warping_spade.onnx", "stitching.onnx"]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def exported(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """What a run makes of the official files, once for all tests: it takes seconds."""
    return resolve(official, scratch=tmp_path_factory.mktemp("run") / "models", side=SIDE)


@pytest.fixture
def pth(official: Path, tmp_path: Path) -> Path:
    """A copy of the official files to spoil."""
    return Path(shutil.copytree(official, tmp_path / "pth"))


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    return write_graphs(tmp_path / "graphs")


class DueError(Exception):
    """An export would begin now."""


def due(sentence: str) -> None:
    raise DueError(sentence)


def write_sums(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder)}\n" for p in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rows_of(folder: Path) -> dict[str, Row]:
    return {row.file: row for row in survey(folder)}


# the graphs of a run


def test_official_files_are_exported_once_and_known_by_their_own_digests(official: Path, exported: Weights) -> None:
    expected = {role: sha256_of(official / file) for role, file in [*BASE_FILES.items(), ("retargeting", RETARGETING_FILE)]}
    assert exported.digests == {**expected, "export": f"version 1, {SIDE} px", "precision": "fp32"}
    assert {p.name for p in exported.folder.iterdir()} == {*GRAPHS, "SHA256SUMS", "export.json"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=exported.folder, check=True)
    record = json.loads((exported.folder / "export.json").read_text())
    assert record["torch"] and record["sources"]["motion"] == {"file": BASE_FILES["motion"], "sha256": expected["motion"]}
    again = resolve(official, scratch=exported.folder.parent, side=SIDE, say=due)
    assert again == exported


def test_another_side_or_precision_is_another_export(official: Path, exported: Weights) -> None:
    for side, precision in ((2 * SIDE, "fp32"), (SIDE, "fp16")):
        with pytest.raises(DueError):
            resolve(official, scratch=exported.folder.parent, side=side, precision=precision, say=due)  # type: ignore[arg-type]


def test_other_weights_are_another_export(official: Path, exported: Weights, pth: Path) -> None:
    write_official(pth, seed=1)
    with pytest.raises(DueError):
        resolve(pth, scratch=exported.folder.parent, side=SIDE, say=due)


def test_an_export_used_as_models_folder_has_the_digests_of_what_it_is_made_of(exported: Weights, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "moved"))
    direct = resolve(folder, scratch=tmp_path / "scratch", say=due)
    assert direct.folder == folder and direct.digests == exported.digests
    assert not (tmp_path / "scratch").exists()


def test_an_export_that_lost_its_sums_is_known_by_its_graphs(exported: Weights, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "moved"))
    (folder / "SHA256SUMS").unlink()
    assert resolve(folder, scratch=tmp_path / "scratch").digests["motion"] == sha256_of(folder / "motion_extractor.onnx")


def test_a_graph_put_into_an_export_with_new_sums_does_not_pass_for_the_old_one(exported: Weights, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "moved"))
    write_graph(folder / "stitching.onnx", *GRAPHS["stitching.onnx"])
    (folder / "SHA256SUMS").unlink()
    write_sums(folder)
    assert resolve(folder, scratch=tmp_path / "scratch").digests["stitching"] == sha256_of(folder / "stitching.onnx")


@pytest.mark.parametrize("damage", ["no sums", "no record", "graph gone", "graph flipped", "sums garbled"])
def test_a_half_written_or_damaged_export_is_done_again(official: Path, exported: Weights, tmp_path: Path, damage: str) -> None:
    scratch = Path(shutil.copytree(exported.folder.parent, tmp_path / "models"))
    folder = scratch / exported.folder.name
    resolve(official, scratch=scratch, side=SIDE, say=due)
    {
        "no sums": (folder / "SHA256SUMS").unlink,
        "no record": (folder / "export.json").unlink,
        "graph gone": (folder / "stitching_lip.onnx").unlink,
        "graph flipped": lambda: flip_byte(folder / "warping_spade.onnx"),
        "sums garbled": lambda: (folder / "SHA256SUMS").write_text("half a li"),
    }[damage]()
    with pytest.raises(DueError):
        resolve(official, scratch=scratch, side=SIDE, say=due)


def test_onnx_graphs_are_used_as_they_stand(graphs: Path, tmp_path: Path) -> None:
    weights = resolve(graphs, scratch=tmp_path / "scratch", say=due)
    assert weights.folder == graphs and weights.layout == "onnx"
    assert weights.digests == {role: sha256_of(graphs / of_layout("onnx")[role].file) for role in weights.digests}
    assert set(weights.digests) == {"appearance", "motion", "warping_spade", "stitching"}
    assert [p.name for p in weights.sources] == NEEDED


def test_only_the_networks_asked_for_count(graphs: Path, tmp_path: Path) -> None:
    (graphs / "stitching.onnx").unlink()
    weights = resolve(graphs, scratch=tmp_path, networks=["appearance", "motion", "warping_spade"])
    assert "stitching" not in weights.digests


@pytest.mark.parametrize(("layout", "inside"), [("official", "liveportrait"), ("onnx", "liveportrait_onnx")])
def test_a_whole_release_serves_too(official: Path, tmp_path: Path, layout: str, inside: str) -> None:
    if layout == "official":
        shutil.copytree(official, tmp_path / "release" / inside)
        with pytest.raises(DueError, match=f"release/{inside}: exporting"):
            resolve(tmp_path / "release", scratch=tmp_path / "scratch", say=due)
    else:
        write_graphs(tmp_path / "release" / inside)
        assert resolve(tmp_path / "release", scratch=tmp_path / "scratch").folder == tmp_path / "release" / inside


def test_graphs_win_over_pth_files(pth: Path, tmp_path: Path) -> None:
    write_graphs(pth)
    assert resolve(pth, scratch=tmp_path / "scratch", say=due).layout == "onnx"
    row = rows_of(pth)[BASE_FILES["motion"]]
    assert row.state == "unused" and "ONNX graphs are used" in row.next


def test_the_models_folder_is_never_written_to(pth: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in pth.rglob("*")}
    with pytest.raises(ValueError, match=r"lies in .*, which is never written to"):
        export(pth, pth / "onnx", side=SIDE)
    survey(pth)
    assert {p: p.stat().st_mtime_ns for p in pth.rglob("*")} == before


def test_an_export_never_goes_over_other_files(official: Path, exported: Weights, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(thesis.txt\); name a new folder"):
        export(official, tmp_path, side=SIDE)
    with pytest.raises(ValueError, match="holds another export; name a new folder"):
        export(official, exported.folder, side=2 * SIDE)
    assert export(official, exported.folder, side=SIDE)["side"] == SIDE  # the same again: nothing to do


# what is wrong with a folder


def refuse(folder: Path, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as e:
        resolve(folder, scratch=folder.parent / "scratch", side=SIDE)
    assert "\n" not in str(e.value)
    assert not list((folder.parent / "scratch").glob("*/SHA256SUMS"))


def test_no_folder_and_an_empty_one(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "nowhere: no such folder. Make it and put the LivePortrait weights there; `crosspair models list`")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", r"base_models/appearance_feature_extractor.pth, .*not found. Expected .*`crosspair models list`")


@pytest.mark.parametrize("file", OFFICIAL_FILES)
def test_a_missing_pth_file_is_named(pth: Path, file: str) -> None:
    (pth / file).unlink()
    refuse(pth, f"{pth}: {file} not found. Expected LivePortrait's .pth files or ONNX graphs: `crosspair models list`")


@pytest.mark.parametrize("file", OFFICIAL_FILES)
def test_a_truncated_pth_file_is_named(pth: Path, file: str) -> None:
    (pth / file).write_bytes((pth / file).read_bytes()[:-1000])
    refuse(pth, f"{file}: expected a PyTorch file.*truncated.*download the file again")


def test_a_pth_file_of_another_network_is_named(pth: Path) -> None:
    shutil.copy(pth / BASE_FILES["motion"], pth / BASE_FILES["warping"])
    refuse(pth, f"{BASE_FILES['warping']}: expected LivePortrait's warping network")


@pytest.mark.parametrize("file", NEEDED)
def test_a_missing_graph_is_named(graphs: Path, file: str) -> None:
    (graphs / file).unlink()
    refuse(graphs, f"{graphs}: {file} not found beside the other ONNX graphs. Take it from warmshao's FasterLivePortrait")


def test_a_missing_graph_beside_pth_files_has_two_remedies(pth: Path) -> None:
    write_graphs(pth, "stitching.onnx")
    refuse(pth, "not found beside the other ONNX graphs.*Or take the other .onnx files away, so that the .pth files are used")


@pytest.mark.parametrize("file", NEEDED)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_a_truncated_graph_is_named(graphs: Path, file: str, part: float) -> None:
    data = (graphs / file).read_bytes()
    (graphs / file).write_bytes(data[: int(len(data) * part)])
    refuse(graphs, f"{file}: expected an ONNX file; truncated, .*or another kind of file: export it again .* or download it again")


def test_a_graph_of_another_network_is_named(graphs: Path) -> None:
    shutil.copy(graphs / "stitching.onnx", graphs / "motion_extractor.onnx")
    refuse(graphs, "motion_extractor.onnx: another network than its name says: expected img -> pitch, .*, found input -> output")


@pytest.mark.parametrize(
    ("file", "inputs", "sentence"),
    [
        ("warping_spade.onnx", {"feature_3d": (1, 32, 16, 64, 64)}, "volume of appearance_.* 3x4x8x8, of warping_spade.* 32x16x64x64"),
        ("warping_spade.onnx", {"kp_driving": (1, 10, 3)}, "keypoints of warping_spade.* 10, of motion_extractor.* 21"),
        ("stitching.onnx", {"input": (1, 60)}, "keypoints of warping_spade.* 21, of .*stitching 10"),
    ],
)
def test_graphs_of_two_models_are_refused(graphs: Path, file: str, inputs: dict[str, tuple[int | str, ...]], sentence: str) -> None:
    write_graph(graphs / file, GRAPHS[file][0] | inputs, GRAPHS[file][1])
    refuse(graphs, f"graphs of two models: {sentence}; take all files from one release or one export")


def test_the_graph_for_tensorrt_is_refused_under_both_names(graphs: Path) -> None:
    write_graph(graphs / "warping_spade.onnx", *GRAPHS["warping_spade.onnx"], op_type="GridSample3D")
    refuse(graphs, "warping_spade.onnx: its operator GridSample3D exists only in a TensorRT plugin.*take warping_spade.onnx of the same")
    (graphs / "warping_spade.onnx").rename(graphs / "warping_spade-fix.onnx")
    refuse(graphs, "warping_spade.onnx not found .* warping_spade-fix.onnx cannot serve: its operator GridSample3D")
    assert rows_of(graphs)["warping_spade-fix.onnx"].state == "refused"


def test_a_graph_with_its_weights_in_another_file_is_refused(graphs: Path) -> None:
    model = load(graphs / "stitching.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4096, np.float32), "w"))
    save(model, graphs / "stitching.onnx", save_as_external_data=True, location="stitching.data")
    refuse(graphs, r"stitching.onnx: keeps its weights in another file \(stitching.data\); save it as one file")


def test_a_git_lfs_pointer_is_recognised(graphs: Path, pth: Path) -> None:
    for folder, file in ((graphs, "motion_extractor.onnx"), (pth, BASE_FILES["motion"])):
        (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 112648514\n")
        refuse(folder, f"{file}: a Git LFS pointer, not the file itself: run `git lfs pull`")
        assert "git lfs pull" in rows_of(folder)[file].next


@pytest.mark.parametrize("name", ["liveportrait_animals", "liveportrait_animal_onnx"])
def test_animals_are_refused(official: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(official, tmp_path / name)
    refuse(tmp_path / name, f"{name}: LivePortrait for animals.*take the folder liveportrait.* of the same release")


@pytest.mark.parametrize("name", ["spade_generator.safetensors", "live_portrait_generator.onnx", "motion_extractor-v1.1.onnx"])
def test_other_conversions_are_recognised(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    refuse(tmp_path, f"not found.* {name} cannot serve: .*take ")
    assert rows_of(tmp_path)[name].state == "unused"


# SHA256SUMS


@pytest.mark.parametrize("where", ["root", "base_models"])
@pytest.mark.parametrize("damage", [flip_byte, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_promised_file_must_match(pth: Path, where: str, damage: Callable[[Path], None]) -> None:
    folder = pth if where == "root" else pth / "base_models"
    write_sums(folder)
    with pytest.raises(DueError):
        resolve(pth, scratch=pth.parent / "scratch", side=SIDE, say=due)
    file = pth / BASE_FILES["generator"]
    expected = sha256_of(file)
    damage(file)
    refuse(
        pth, f"{file}: expected sha256 {expected} .{folder}/SHA256SUMS, line .*, found {sha256_of(file)}.*[Dd]ownload or export it again"
    )
    with pytest.raises(ValueError, match="expected sha256"):
        export(pth, pth.parent / "out", side=SIDE)
    row = rows_of(pth)[BASE_FILES["generator"]]
    assert row.digest == "wrong" and expected in row.next


def test_a_promise_of_a_file_that_no_run_uses_holds_too(graphs: Path) -> None:
    (graphs / "notes.txt").write_text("trained on friday")
    write_sums(graphs)
    resolve(graphs, scratch=graphs.parent)
    (graphs / "notes.txt").write_text("trained on monday")
    refuse(graphs, "notes.txt: expected sha256")
    assert rows_of(graphs)["notes.txt"].digest == "wrong"


def test_sums_in_the_other_spellings_of_sha256sum(graphs: Path) -> None:
    value = sha256_of(graphs / "stitching.onnx")
    (graphs / "SHA256SUMS").write_bytes(f"\ufeff{value.upper()} *./stitching.onnx\r\n\r\n{value}  not_downloaded.onnx\n".encode())
    assert rows_of(graphs)["stitching.onnx"].digest == "listed"
    flip_byte(graphs / "stitching.onnx")
    refuse(graphs, "stitching.onnx: expected sha256")


def test_a_line_that_cannot_be_read_is_not_passed_over(graphs: Path) -> None:
    (graphs / "SHA256SUMS").write_text("# my files\n")
    refuse(graphs, "SHA256SUMS, line 1: expected a sha256 and a file name, as `sha256sum` writes them, found '# my files'")


# survey


def test_survey_lists_what_is_expected_found_and_known(pth: Path) -> None:
    (pth / "det_10g.onnx").write_bytes(b"another pack")
    (pth / BASE_FILES["motion"]).unlink()
    rows = rows_of(pth)
    assert set(rows) == {*OFFICIAL_FILES, "landmark.onnx", "det_10g.onnx"}
    found = rows[BASE_FILES["warping"]]
    assert (found.role, found.state, found.digest, found.licence) == ("warping", "found", "unknown", "MIT as published")
    assert found.size_bytes == (pth / BASE_FILES["warping"]).stat().st_size and found.sha256 == sha256_of(pth / BASE_FILES["warping"])
    assert "damaged download" in found.next
    missing = rows[BASE_FILES["motion"]]
    assert (missing.state, missing.path, missing.licence) == ("missing", None, MIT) and "KwaiVGI" in missing.next
    assert rows["landmark.onnx"].state == "optional"
    foreign = rows["det_10g.onnx"]
    assert (foreign.state, foreign.licence) == ("unused", f"{NON_COMMERCIAL} as published") and "finds faces with it" in foreign.next


def test_an_empty_folder_may_be_filled_in_two_ways(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert {file for file, row in rows.items() if row.state == "missing"} == {*OFFICIAL_FILES, *NEEDED}
    assert rows["stitching_eye.onnx"].state == "optional"


def test_the_catalogue_is_of_one_piece() -> None:
    digests = [d for w in CATALOGUE for d in w.digests]
    assert len(digests) == len(set(digests)) and all(len(d) == 64 and set(d) <= set("0123456789abcdef") for d in digests)
    assert len({(w.layout, w.file) for w in CATALOGUE}) == len(CATALOGUE)
    assert all(w.advice for w in CATALOGUE if w.layout in ("refused", "unused"))


# licences


def test_files_for_research_only_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("det_10g.onnx", "2d106det.onnx", "w600k_r50.onnx"):
        (tmp_path / name).write_bytes(b"whatever")
        with pytest.raises(ValueError, match=f"{name}: licensed for non-commercial research only, as published under this name.*mediapipe"):
            forbid_non_commercial([tmp_path / name])


def test_files_for_research_only_are_refused_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such file may lie here, so one that may is given the licence."""
    file = tmp_path / "my_detector.onnx"
    file.write_bytes(b"InsightFace's")
    forbid_non_commercial([file])
    listed = [replace(w, digests=(sha256_of(file),)) if w.name == "det_10g.onnx" else w for w in CATALOGUE]
    monkeypatch.setattr(catalogue, "CATALOGUE", tuple(listed))
    with pytest.raises(ValueError, match=r"my_detector.onnx: .*its content is InsightFace's face detector \(det_10g.onnx\)"):
        forbid_non_commercial([file])


def test_liveportrait_needs_no_such_file(graphs: Path, exported: Weights, tmp_path: Path) -> None:
    forbid_non_commercial(exported.sources)
    forbid_non_commercial(resolve(graphs, scratch=tmp_path).sources)


def test_torch_is_imported_only_to_export(graphs: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import pipeline.cli
from pipeline.weights import resolve
resolve(Path({str(graphs)!r}), scratch=Path("never"))
assert "onnx" in sys.modules
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
