"""The stream in someone else's trainer: what it imports, and the lines of the page that show it."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model.stream import ShardStream, StreamConfig, Window

PAGE = Path(__file__).parents[2] / "docs" / "shards.md"


def test_nothing_heavy_is_imported(pair_set: Path) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from model.stream import ShardStream, StreamConfig
        ShardStream({str(pair_set)!r}, StreamConfig(frames=4, history=2)).batch(0, 2)
        heavy = {{"torch", "pandas", "ray", "diffusers", "transformers", "onnxruntime", "mediapipe", "s3fs", "stages", "pipeline"}}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def lines_of_the_page(after: str, containing: str) -> str:
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", PAGE.read_text().split(after)[1], re.MULTILINE)
    return textwrap.dedent(next(b for b in blocks if containing in b))


def test_the_ten_lines_of_the_page_train_and_resume(pair_set: Path, tmp_path: Path) -> None:
    code = lines_of_the_page("## With our stream", "Prefetch")
    assert code.strip().count("\n") == 9
    code = code.replace("frames=16, history=3", "frames=4, history=2").replace("32", "4")
    code = code.replace("RUN/shards/meshwarp", str(pair_set))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        seen: list[int] = []

        def loss_of(model: torch.nn.Module, window: Window) -> torch.Tensor:
            seen.append(window.position)
            return model(torch.from_numpy(window.target).float().mean((0, 1, 2))[None]).square().sum()

        model = DistributedDataParallel(torch.nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        names = {
            "rank": 0,
            "world": 1,
            "torch": torch,
            "dist": dist,
            "loss_of": loss_of,
            "model": model,
            "optimizer": optimizer,
            "device": "cpu",
        }
        exec(code, first := names | {"saved": None, "steps": 2})
        saved = {"position": first["position"], "stream": first["stream"].digest}
        exec(code, names | {"saved": saved, "steps": 1})
    finally:
        dist.destroy_process_group()
    assert seen == list(range(12))


def test_the_lines_of_the_page_read_plain_webdataset(pair_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "WDS_SECURE", "1")
    from schemas.regions import Regions
    from schemas.video import decode_video

    code = (
        lines_of_the_page("## With our stream", "webdataset").replace("RUN/shards/meshwarp", str(pair_set)).replace("first=20", "first=1")
    )
    code = code.replace("count=19", "count=4")
    names = {"decode_video": decode_video, "Regions": Regions}
    exec(code, names)
    assert names["frames"].shape == (4, 96, 96, 3) and names["regions"].valid.shape[1] == 4  # type: ignore[attr-defined]


def test_a_stream_can_be_sent_to_another_process(pair_set: Path, tmp_path: Path) -> None:
    """As a data loader's workers get it."""
    stream = ShardStream(pair_set, StreamConfig(frames=4, history=2, mixing="balanced", cache_dir=tmp_path))
    stream.key(0)
    assert [pickle.loads(pickle.dumps(stream)).key(p) for p in range(6)] == [stream.key(p) for p in range(6)]  # noqa: S301
