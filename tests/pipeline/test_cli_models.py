"""`crosspair models`: what it prints, and the exit code that scripts go by."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tinyweights import GRAPHS, SIDE, write_graph, write_graphs, write_official

from model.liveportrait_weights import BASE_FILES
from pipeline.catalogue import CATALOGUE


def crosspair(*args: object, columns: int = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(args), capture_output=True, text=True, env=os.environ | {"COLUMNS": str(columns)})


def _command(args: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-c", "from pipeline.cli import main; main()", "models", *map(str, args)]


@pytest.mark.parametrize("columns", [80, 124, 125, 200])
def test_list_names_every_file_in_full(columns: int) -> None:
    done = crosspair("list", columns=columns)
    assert done.returncode == 0 and not done.stderr
    words = " ".join(done.stdout.split())
    for weight in CATALOGUE:
        assert f"{weight.file} " in done.stdout and weight.what in words
    assert "non-commercial research only" in done.stdout and "KwaiVGI" in done.stdout and "FasterLivePortrait" in done.stdout
    assert all(len(line) <= columns for line in done.stdout.splitlines())


@pytest.mark.parametrize("columns", [80, 200])
def test_check_of_good_folders(tmp_path: Path, columns: int) -> None:
    official, graphs = write_official(tmp_path / "pth"), write_graphs(tmp_path / "onnx")
    done = crosspair("check", official, columns=columns)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the .pth files load: 0." in done.stdout and "21 keypoints" in done.stdout
    assert all(f"{file} " in done.stdout for file in BASE_FILES.values())
    assert f"{official}: ready. In a run's config: reenactor: {{engine: liveportrait, models: {official}}}" in done.stdout
    done = crosspair("check", graphs, columns=columns)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stitching.onnx: opset 16: input 1x126 -> output 1x65" in done.stdout and "ready" in done.stdout


def test_check_says_which_layout_wins(tmp_path: Path) -> None:
    done = crosspair("check", write_graphs(write_official(tmp_path)))
    assert done.returncode == 0 and "the ONNX graphs are used; take them away to use this file" in " ".join(done.stdout.split())
    assert ".pth files load" not in done.stdout


def test_check_of_an_empty_folder(tmp_path: Path) -> None:
    done = crosspair("check", tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("missing") == 9 and "problem: " in done.stdout
    assert done.stdout.splitlines()[-1] == f"{tmp_path}: a run cannot use it (1 problem)"


def test_check_opens_pth_files(tmp_path: Path) -> None:
    file = write_official(tmp_path) / BASE_FILES["generator"]
    file.write_bytes(file.read_bytes()[:-100])
    done = crosspair("check", tmp_path)
    (problem,) = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert done.returncode == 1 and str(file) in problem and "truncated" in problem


def test_check_opens_graphs_and_says_all_that_is_wrong(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    write_graph(tmp_path / "motion_extractor.onnx", *GRAPHS["motion_extractor.onnx"], op_type="NoSuchOperator")
    (tmp_path / "stitching.onnx").write_bytes(b"<html>404</html>")
    (tmp_path / "stitching_lip.onnx").write_bytes(b"<html>404</html>")
    done = crosspair("check", tmp_path)
    problems = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert done.returncode == 1 and len(problems) == 2
    assert "motion_extractor.onnx: not a valid ONNX graph" in problems[0] and "NoSuchOperator" in problems[0]
    assert "stitching.onnx: expected an ONNX file" in problems[1]
    assert f"{tmp_path / 'stitching_lip.onnx'}: expected an ONNX file" in done.stdout and "(a run does without)" in done.stdout


def test_check_says_what_a_promise_found(tmp_path: Path) -> None:
    write_graphs(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  stitching.onnx\n")
    done = crosspair("check", tmp_path)
    (problem,) = [line for line in done.stdout.splitlines() if line.startswith("problem: ")]
    assert done.returncode == 1 and f"expected sha256 {'0' * 64}" in problem and "SHA256SUMS, line 1" in problem


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["check", "nowhere"], "crosspair: nowhere: no such folder"),
        (["export", "nowhere", "--to", "out"], "crosspair: nowhere: no such folder"),
    ],
)
def test_what_users_can_mend_is_one_line(tmp_path: Path, args: list[str], sentence: str) -> None:
    done = crosspair(*args)
    assert done.returncode == 2 and done.stderr.startswith(sentence) and len(done.stderr.splitlines()) == 1


@pytest.mark.campaign
def test_a_killed_export_goes_through_when_run_again(tmp_path: Path) -> None:
    official, out = write_official(tmp_path / "pth"), tmp_path / "onnx"
    args = ("export", official, "--to", out, "--side", SIDE)
    process = subprocess.Popen(_command(args), start_new_session=True)
    while not list(out.glob("*.onnx")) and process.poll() is None:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(out.glob("*.onnx"))
    (out / "SHA256SUMS").unlink(missing_ok=True)  # the last files are written within milliseconds: the kill may come late
    done = crosspair(*args)
    assert done.returncode == 0, done.stderr
    assert all(str(out / name) in done.stdout for name in GRAPHS)
    assert f"reenactor: {{engine: liveportrait, models: {out}}}" in done.stdout
    assert {p.name for p in out.iterdir()} == {*GRAPHS, "SHA256SUMS", "export.json"}
    shutil.rmtree(official)
    checked = crosspair("check", out)  # the graphs serve without the files that they are made of
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("listed") == len(GRAPHS)
