"""Latents in a run: they go with their samples, whoever takes those away; verify looks at each byte; readers of samples see none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from s3server import S3Server
from smallworld import Finished, Silent, World
from typer.testing import CliRunner, Result

from model.codec import DctCodec
from model.latents import Latents, write_latents
from pipeline.cli import app
from pipeline.forget import enforce, foresee_forget, forget
from pipeline.pack import take_out
from pipeline.storage import exclusive
from pipeline.verify import diff, verify
from schemas.ids import file_digest
from schemas.latents import LatentsIndex, publish, read_latents_index
from schemas.sample import INDEX_NAME, read_index
from schemas.store import DiskStore, ObjectStore, open_store

HIS = "collins"
SET = "shards/meshwarp"


@pytest.fixture(scope="module")
def encoded(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, with latents. Tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("encoded") / "run"
    shutil.copytree(finished.root, root)
    written = write_latents(root / SET, DctCodec(), frame_px=64)
    assert written.made == len(read_index(root / SET)) > 2 and not written.bad
    (root / SET / "text.safetensors").write_bytes(b"of nobody")
    return root


@pytest.fixture
def run(encoded: Path, tmp_path: Path) -> Path:
    shutil.copytree(encoded, tmp_path / "run")
    return tmp_path / "run"


def index_of(root: Path) -> LatentsIndex:
    index = read_latents_index(open_store(root / SET / "latents"))
    assert index is not None
    return index


def latents(root: Path) -> dict[str, bytes]:
    """Sample -> its member."""
    files = {r["tar"]: (root / SET / "latents" / r["tar"]).read_bytes() for r in index_of(root).rows}
    return {r["sample"]: files[r["tar"]][r["offset"] :][: r["size"]] for r in index_of(root).rows}


def his_samples(root: Path) -> set[str]:
    return {r["sample"] for r in read_index(root / SET).to_pylist() if HIS in (r["performer"], r["appearance"])}


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): file_digest(p) for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


def assert_nothing_is_left(root: Path, before: dict[str, bytes], gone: set[str]) -> None:
    """Neither name nor any frame's latents of those gone, nor of others' anything lost."""
    assert verify(root) == []
    after = latents(root)
    assert after == {k: v for k, v in before.items() if k not in gone}
    data = [p.read_bytes() for p in root.rglob("*") if p.is_file()]
    others, only_his = b"".join(after.values()), 0
    for key in gone:
        assert not any(key.encode() in d for d in data)
        member = before[key]
        row = 2 * 16 * 8 * 8
        frames = [member[i : i + row] for i in range(len(member) - row, 2000, -row)]
        mine = [f for f in frames if f not in others]  # two pairs of one clip have the same target
        assert not any(f in d for f in mine for d in data)
        only_his += len(mine)
    assert only_his > 20


# --- forgetting


def test_who_is_forgotten_leaves_no_latents(run: Path) -> None:
    assert verify(run) == []
    before, gone, removal = latents(run), his_samples(run), foresee_forget(run, HIS)
    assert gone and before.keys() - gone
    (run / SET / "latents" / "train-000050.tar").write_bytes(b"left by a killed process: may show anybody")
    forget(run, HIS)
    assert_nothing_is_left(run, before, gone)
    assert removal.bytes > sum(len(before[k]) for k in gone)
    again = files(run)
    forget(run, HIS)
    assert files(run) == again


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["after the set's index", "after the index of latents"])
@pytest.mark.parametrize("goes_on", ["forget", "run"])
def test_killed_in_between_it_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch, moment: str, goes_on: str) -> None:
    before, gone = latents(run), his_samples(run)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(*(("pipeline.pack.prune", die) if moment == "after the set's index" else ("schemas.latents.clear_unnamed", die)))
        with pytest.raises(Killed):
            forget(run, HIS)
    assert not gone & set(read_index(run / SET)["sample"].to_pylist())
    assert any("holds something that was forgotten" in p for p in verify(run))
    if goes_on == "forget":
        forget(run, HIS)
    else:
        with exclusive(run):
            enforce(DiskStore(run))
    assert_nothing_is_left(run, before, gone)


def test_a_damaged_index_of_latents_holds_up_with_a_remedy(run: Path) -> None:
    """Nobody can say whose latents the tars hold."""
    path = run / SET / "latents" / INDEX_NAME
    path.write_bytes(path.read_bytes()[:-30])
    for work in (forget, foresee_forget):
        with pytest.raises(ValueError, match=rf"{path}: a damaged table; take the folder latents/ away"):
            work(run, HIS)
    assert any(str(path) in problem for problem in verify(run))
    shutil.rmtree(path.parent)
    forget(run, HIS)
    assert verify(run) == []


def test_samples_that_are_taken_out_take_their_latents_along(run: Path) -> None:
    before, gone = latents(run), min(read_index(run / SET)["sample"].to_pylist())
    take_out(run / SET, {gone}, max_mb=1, seed=0, progress=lambda _: None)
    assert latents(run) == {k: v for k, v in before.items() if k != gone}
    assert {r["tar"] for r in index_of(run).rows} == {p.name for p in (run / SET / "latents").glob("*.tar")}


def test_a_run_again_leaves_them(run: Path, world: World) -> None:
    before = files(run / "shards")
    world.run(str(run), Silent())
    assert files(run / "shards") == before and verify(run) == []


# --- verify


def a_tar(root: Path) -> Path:
    return min((root / SET / "latents").glob("*.tar"))


def change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def change_rows(root: Path, field: str, value: object) -> None:
    index = index_of(root)
    rows = [{**r, field: value} if i == 0 else r for i, r in enumerate(index.rows)]
    (root / SET / "latents" / INDEX_NAME).write_bytes(LatentsIndex(index.codec, rows, index.next_tar).encode())


def flip_a_latent(root: Path) -> str:
    row = index_of(root).rows[0]
    change(root / SET / "latents" / row["tar"], row["offset"] + row["size"] // 2)
    return f"{row['tar']}: {row['sample']}.latents.safetensors does not have its digest"


def flip_a_header(root: Path) -> str:
    change(a_tar(root), 300)
    return f"{a_tar(root)}: the header of .*latents.safetensors is not as it was written"


def flip_the_end(root: Path) -> str:
    change(a_tar(root), a_tar(root).stat().st_size - 1)
    return "the end is not as it was written"


def lengthen(root: Path) -> str:
    a_tar(root).write_bytes(a_tar(root).read_bytes() + b"more")
    return "goes on behind its end"


def lose_a_tar(root: Path) -> str:
    name = a_tar(root).name
    a_tar(root).unlink()
    return f"latents/{name}: missing"


def add_a_tar(root: Path) -> str:
    shutil.copy(a_tar(root), a_tar(root).with_name("train-000099.tar"))
    return "latents/train-000099.tar: not in the index of latents"


def add_a_file(root: Path) -> str:
    (root / SET / "latents" / "some.npy").write_bytes(b"")
    return r"some.npy: not in the index of latents"


def lose_the_index(root: Path) -> str:
    (root / SET / "latents" / INDEX_NAME).unlink()
    return f"{a_tar(root)}: not in the index of latents"


def change_the_index(root: Path) -> str:
    path = root / SET / "latents" / INDEX_NAME
    change(path, path.stat().st_size - 20)
    return str(path)


def latents_of_nobody(root: Path) -> str:
    change_rows(root, "sample", "0" * 20)
    return "latents of 00000000000000000000 are of a sample that is not in the set"


def latents_of_other_bytes(root: Path) -> str:
    change_rows(root, "sample_digest", "0" * 20)
    return "are of other bytes of this sample"


def other_size(root: Path) -> str:
    change_rows(root, "frames", 7)
    return "contradicts itself on the latents of"


def twice(root: Path) -> str:
    index = index_of(root)
    (root / SET / "latents" / INDEX_NAME).write_bytes(LatentsIndex(index.codec, [*index.rows, index.rows[0]], index.next_tar).encode())
    return "latents of a sample stand twice"


FAULTS = [flip_a_latent, flip_a_header, flip_the_end, lengthen, lose_a_tar, add_a_tar, add_a_file, lose_the_index, change_the_index]
FAULTS += [latents_of_nobody, latents_of_other_bytes, other_size, twice]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_verify_names_what_is_wrong_with_latents(tmp_path: Path, encoded: Path, fault: Callable[[Path], str]) -> None:
    import re

    from pipeline.verify import _check_latents, _until_damage

    root = tmp_path / "run"
    shutil.copytree(encoded / SET, root / SET)
    said = [*_until_damage(_check_latents(open_store(root / SET)))]
    assert said == []
    wanted = fault(root)
    said = [*_until_damage(_check_latents(open_store(root / SET)))]
    assert any(re.search(wanted, s) for s in said), said


def test_verify_looks_at_latents(run: Path) -> None:
    wanted = flip_a_latent(run)
    assert [wanted in p for p in verify(run)] == [True]


# --- the command


def command(place: object, *more: str) -> Result:
    return CliRunner().invoke(app, ["latents", str(place), "--frame-px", "64", *more])


def test_the_command_encodes_what_is_new_and_says_what_it_left_out(run: Path) -> None:
    before = files(run)
    done = command(run)
    assert done.exit_code == 0 and f"latents of {len(latents(run))} samples in {run / SET / 'latents'}, 0 of them new" in done.stdout
    assert files(run) == before
    with exclusive(run):
        refused = command(run / SET).exception
    assert isinstance(refused, ValueError) and "another crosspair process works on this run" in str(refused)
    row = read_index(run / SET).to_pylist()[0]
    change(run / SET / row["tar"], next(m for m in row["members"] if m["name"] == "target.mp4")["offset"] + 500)
    shutil.rmtree(run / SET / "latents")
    done = command(run / SET)
    assert done.exit_code == 1 and f"{row['sample']}: left out: " in done.stdout and "1 samples were left out" in done.stdout
    assert latents(run).keys() == {r["sample"] for r in read_index(run / SET).to_pylist()} - {row["sample"]}
    needs_base = command(run, "--codec", "vae").exception
    assert isinstance(needs_base, ValueError) and "name a folder of SD3.5" in str(needs_base)


def test_in_an_object_store(encoded: Path, s3: S3Server, tmp_path: Path) -> None:
    """The same bytes as on a disk, and windows by ranged reads."""
    s3.make_bucket("latents")
    bucket, disk = ObjectStore("s3://latents/run"), DiskStore(encoded)
    for name in ("run.yaml", *(n for n in disk.names(f"{SET}/") if "/latents/" not in n)):
        bucket.write(name, disk.read(name))
    done = command("s3://latents/run")
    assert done.exit_code == 0, done.output
    names = disk.names(f"{SET}/latents/")
    assert bucket.names(f"{SET}/latents/") == names and bucket.read_many(names) == disk.read_many(names)
    here, there = (Latents(place.sub(SET), DctCodec(), 64) for place in (disk, bucket))
    key = min(latents(encoded))
    for a, b in zip(here.window(key, 3, 4, 1) or (), there.window(key, 3, 4, 1) or (), strict=True):
        assert torch.equal(a, b)
    assert here.digest == there.digest and here.window(key, 3, 4, 1) is not None


# --- who reads samples


def test_readers_of_samples_see_no_latents(encoded: Path, finished: Finished, tmp_path: Path) -> None:
    code = """
import json, sys
sys.modules["torchcodec"] = None
from datasets import load_dataset
for s in load_dataset(sys.argv[1], split="train", streaming=True, cache_dir=sys.argv[2]):
    print(json.dumps([s["__key__"], sorted(s)]))
"""
    here = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, str(encoded / SET), str(tmp_path)]
    said = subprocess.run(command, env=here, check=True, capture_output=True, text=True).stdout
    rows = list(map(json.loads, said.splitlines()))
    assert sorted(key for key, _ in rows) == sorted(r["sample"] for r in read_index(finished.shards).to_pylist() if r["split"] == "train")
    assert not any("latents" in name for _, names in rows for name in names)
    assert diff(encoded, finished.root) == []


def test_an_index_is_published_once(run: Path) -> None:
    folder = open_store(run / SET / "latents")
    before = (run / SET / "latents" / INDEX_NAME).stat().st_mtime_ns
    publish(folder, index_of(run))
    assert (run / SET / "latents" / INDEX_NAME).stat().st_mtime_ns == before
