"""Shards are read by others: tar, webdataset, Hugging Face datasets, Ray."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from smallworld import Finished

from schemas.ids import content_digest
from schemas.regions import Regions
from schemas.sample import MEMBERS, SampleInfo, read_index, read_members


@pytest.fixture(scope="module")
def expected(finished: Finished) -> dict[str, dict[str, bytes]]:
    """Key -> member -> bytes, by the index."""
    return {r["sample"]: read_members(finished.shards, r, MEMBERS) for r in read_index(finished.shards).to_pylist()}


def test_tar_unpacks_every_sample(finished: Finished, expected: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    for tar in sorted(finished.shards.glob("*.tar")):
        subprocess.run(["tar", "-xf", str(tar)], cwd=tmp_path, check=True)
    got = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert got == {f"{key}.{name}": data for key, members in expected.items() for name, data in members.items()}


def in_a_process(code: str, *arguments: object, **environment: str) -> str:
    """A reader in a process of its own, where nothing of ours is set up or imported."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_webdataset_reads_and_decodes_securely(finished: Finished, expected: dict[str, dict[str, bytes]]) -> None:
    code = """
import json, sys, webdataset as wds, numpy as np
pattern = sys.argv[1:]
for s in wds.WebDataset(pattern, shardshuffle=False).decode("pil"):
    image = np.asarray(s["source.png"])
    outlines = s["regions.npz"]["outlines"].shape
    print(json.dumps([s["__key__"], image.shape, s["json"]["frames"], len(s["target.mp4"]), outlines]))
"""
    said = in_a_process(code, *sorted(finished.shards.glob("*.tar")), WDS_SECURE="1")
    rows = {row[0]: row[1:] for row in map(json.loads, said.splitlines())}
    assert rows.keys() == expected.keys()
    for key, members in expected.items():
        info, regions = SampleInfo.decode(members["json"]), Regions.decode(members["regions.npz"])
        assert rows[key] == [[128, 128, 3], info.frames, len(members["target.mp4"]), list(regions.outlines.shape)]


_DATASETS = """
import hashlib, io, json, sys
sys.modules["torchcodec"] = None  # as where it is not installed
from datasets import load_dataset
streaming = sys.argv[2] == "stream"
data = load_dataset(sys.argv[1], split="train", streaming=streaming, cache_dir=sys.argv[3])
for s in data:
    digests = {k: hashlib.blake2b(s[k], digest_size=10).hexdigest() for k in ("target.mp4", "driving.mp4", "audio.flac") if s.get(k)}
    image = s["source.png"].convert("RGB").size
    print(json.dumps([s["__key__"], digests, s["json"], image]))
"""


@pytest.mark.parametrize("mode", ["map", "stream"])
def test_hugging_face_reads_the_folder(finished: Finished, expected: dict[str, dict[str, bytes]], tmp_path: Path, mode: str) -> None:
    said = in_a_process(_DATASETS, finished.shards, mode, tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    rows = {row[0]: row[1:] for row in map(json.loads, said.splitlines())}
    assert rows.keys() == expected.keys()
    for key, members in expected.items():
        digests, info, image = rows[key]
        names = {"target.mp4", "driving.mp4", "audio.flac"} & members.keys()
        assert digests == {n: content_digest(members[n]) for n in names}
        assert SampleInfo(**info) == SampleInfo.decode(members["json"])
        assert image == [128, 128]


@pytest.mark.usefixtures("ray_session")
def test_ray_reads_the_folder(finished: Finished, expected: dict[str, dict[str, bytes]]) -> None:
    import ray

    rows = ray.data.read_webdataset([str(p) for p in sorted(finished.shards.glob("*.tar"))]).take_all()
    assert {r["__key__"] for r in rows} == expected.keys()
    for row in rows:
        members = expected[row["__key__"]]
        assert row["target.mp4"] == members["target.mp4"]
        assert row["json"]["key"] == row["__key__"]
        with np.load(io.BytesIO(row["regions.npz"]), allow_pickle=False) as arrays:
            assert arrays["valid"].shape == (row["json"]["frames"], 4)
