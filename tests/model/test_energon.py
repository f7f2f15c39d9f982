"""Megatron-Energon reads a pair set's folder as it is: its own `prepare` and loader, in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pairset import FRAMES, members_of, write_pair_set

from benchmarks.stream_envs import NoRegistry, environment, python_of
from schemas.ids import digest
from schemas.sample import INDEX_NAME, INFO, SampleInfo, read_index

pytestmark = pytest.mark.campaign  # a gigabyte of packages, once

# What docs/shards.md tells users to write.
READ = """
import hashlib, json, sys
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_savable_loader, get_train_dataset, stateless

@stateless
def cook(sample):
    return sample

class Members(DefaultTaskEncoder):
    decoder = None  # members stay bytes
    cookers = [Cooker(cook)]

    @stateless
    def batch(self, samples):
        return samples

if __name__ == "__main__":
    folder, workers = sys.argv[1], int(sys.argv[2])
    config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
    encoder = Members()
    data = get_train_dataset(folder, worker_config=config, batch_size=2, shuffle_buffer_size=100, max_samples_per_sequence=100,
                             task_encoder=encoder, repeat=False)
    for batch in get_savable_loader(data):
        for s in batch:
            members = {k: hashlib.blake2b(v, digest_size=10).hexdigest() for k, v in s.items() if not k.startswith("__")}
            print(json.dumps([s["__key__"], members]))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return python_of("energon")
    except NoRegistry as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def prepared(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a pair set of two training tars and one for validation, as `energon prepare` leaves it."""
    root = tmp_path_factory.mktemp("energon")
    tables = []
    folder = root / "set"
    folder.mkdir()
    for name, split, of in (("train-000000.tar", "train", "ab"), ("train-000001.tar", "train", "cd"), ("val-000000.tar", "val", "e")):
        samples = {}
        for k in of:
            members = members_of(digest(k), FRAMES.get(k, 12), root)
            samples[k] = members | {INFO: replace(SampleInfo.decode(members[INFO]), split=split).encode()}
        part = write_pair_set(root / name, samples)
        (part / "train-000000.tar").rename(folder / name)
        rows = read_index(part)
        tables.append(rows.set_column(rows.column_names.index("tar"), "tar", pa.array([name] * len(rows))))
    pq.write_table(pa.concat_tables(tables), folder / INDEX_NAME)
    copy = root / "copy"
    shutil.copytree(folder, copy)
    command = [str(python), "-m", "megatron.energon.cli.main", "prepare", str(copy), "--non-interactive", "--no-progress"]
    splits = ["--split-parts", r"train:train-.*\.tar", "--split-parts", r"val:val-.*\.tar", "--sample-type", "CrudeWebdataset"]
    subprocess.run([*command, *splits, "--num-workers", "1"], env=environment(), check=True)
    for tar in folder.glob("*.tar"):
        assert (copy / tar.name).read_bytes() == tar.read_bytes(), "prepare writes beside the tars, not into them"
    return copy


def read_by_energon(python: Path, folder: Path, workers: int) -> Iterator[tuple[str, dict[str, str]]]:
    script = folder.parent / "read.py"
    script.write_text(READ)
    done = subprocess.run([str(python), str(script), str(folder), str(workers)], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        key, members = json.loads(line)
        yield key, members


@pytest.mark.parametrize("workers", [0, 2])
def test_energons_loader_gives_each_training_sample_once_with_the_members_of_the_index(python: Path, prepared: Path, workers: int) -> None:
    rows = [r for r in read_index(prepared).to_pylist() if r["split"] == "train"]
    listed = {r["sample"]: {m["name"]: m["digest"] for m in r["members"]} for r in rows}
    found = list(read_by_energon(python, prepared, workers))
    assert len(found) == len(listed) == 4
    assert dict(found) == listed
