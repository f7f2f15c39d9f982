"""The disk fills, refuses, or fails in mid-write: what was there stays, nobody is blamed, and the run goes on when it is mended."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pickle
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from faceclips import noise, tone, write_clip
from smallworld import CONFIG, Finished, World
from test_ledger import record, segments
from test_pack import digests, run_pack, sample
from test_worker import config, records, source, work

from pipeline import worker
from pipeline.ledger import Ledger, LedgerWriter
from pipeline.storage import write_table
from pipeline.verify import verify
from pipeline.worker import row
from schemas.files import StorageError, own_storage
from schemas.outcomes import Outcome
from schemas.store import DiskStore
from stages.encode import VideoWriter, encode_flac
from stages.outputs import Outputs
from stages.sound import extract_sound

REPO = Path(__file__).parents[2]
CROSSPAIR = [sys.executable, "-c", "from pipeline.cli import main; main()"]


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing beyond `size` fails with EFBIG: an error of the kernel's, in mid-write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def cuts(size: int, many: int = 20) -> list[int]:
    """Where writing `size` bytes may break off: evenly, and before each of the last bytes."""
    return sorted({*np.linspace(0, size - 1, many).astype(int).tolist(), *range(max(0, size - 8), size)})


def temporaries(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if ".tmp-" in p.name]


# --- what is written


def a_video(path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), np.uint8)
    with VideoWriter(path, 25, 64) as writer:
        for frame in frames:
            writer.write(frame)


def a_flac(path: Path) -> None:
    encode_flac((np.random.default_rng(0).standard_normal(20_000) * 8000).astype(np.int16), path)


@pytest.mark.parametrize("write", [a_video, a_flac])
def test_media_that_break_off_are_an_error_wherever_they_do(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Native code writes them: at no length does it take half a file for a whole one."""
    write(tmp_path / "whole")
    size = (tmp_path / "whole").stat().st_size
    for limit in cuts(size, 60):
        with pytest.raises(StorageError) as e, own_storage(tmp_path), files_no_larger_than(limit):
            write(tmp_path / "cut")
        assert e.value.errno == errno.EFBIG
    with files_no_larger_than(size):
        write(tmp_path / "cut")
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_sound_that_breaks_off_is_not_taken_for_none(tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", noise(30), sound=tone(1.2)), tmp_path / "a.s16"
    assert extract_sound(clip, out, 1.2, timeout_s=60)
    for limit in cuts(out.stat().st_size, 4):
        with pytest.raises(OSError) as e, files_no_larger_than(limit):
            extract_sound(clip, out, 1.2, timeout_s=60)
        assert e.value.errno == errno.EFBIG and not out.exists()


def test_a_ledger_segment_is_there_whole_or_not_at_all_and_its_records_are_kept(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path, "faces")
    for k in range(20):
        writer.add(record(f"u{k}"))
    for limit in (0, 1, 100, 2000):
        with pytest.raises(StorageError, match=r"ledger/faces.*; raise the limit"), files_no_larger_than(limit):
            writer.flush()
        assert segments(tmp_path) == [] and temporaries(tmp_path) == []
    writer.flush()
    assert len(Ledger(tmp_path).read("faces", "f")) == 20


def test_a_ledger_that_cannot_be_compacted_says_the_same(tmp_path: Path) -> None:
    for k in range(40):
        writer = LedgerWriter(tmp_path, "faces")
        writer.add(record(f"u{k}"))
        writer.flush()
    shutil.copytree(tmp_path / "ledger", tmp_path / "other" / "ledger")
    Ledger(tmp_path / "other").compact()
    before, (made,) = Ledger(tmp_path).read("faces", "f"), segments(tmp_path / "other")
    for limit in cuts(made.stat().st_size, 8):
        with pytest.raises(StorageError), files_no_larger_than(limit):
            Ledger(tmp_path).compact()
        assert Ledger(tmp_path).read("faces", "f") == before and temporaries(tmp_path) == []
    Ledger(tmp_path).compact()
    assert Ledger(tmp_path).read("faces", "f") == before and len(segments(tmp_path)) == 1


def test_a_table_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path, old, new = tmp_path / "t.parquet", pa.table({"a": [1, 2]}), pa.table({"a": np.random.default_rng(0).random(4000)})
    store = DiskStore(tmp_path)
    write_table(store, "new.parquet", new)
    write_table(store, path.name, old)
    for limit in cuts((tmp_path / "new.parquet").stat().st_size):
        with pytest.raises(StorageError, match=r"t\.parquet: File too large"), files_no_larger_than(limit):
            write_table(store, path.name, new)
        assert pq.read_table(path).equals(old) and temporaries(tmp_path) == []
    write_table(store, path.name, new)
    assert pq.read_table(path).equals(new)


def test_shards_whose_writing_broke_off_are_the_old_ones_and_then_the_new_ones(tmp_path: Path) -> None:
    """Tars are larger than the index, and the index than the card: each limit breaks off another one of them."""
    (tmp_path / "files").mkdir()
    samples = [sample(tmp_path / "files", f"s{k}") for k in range(6)]
    expected = run_pack(tmp_path / "undisturbed", samples[:-1])
    folder = tmp_path / "set"
    before = run_pack(folder, samples)
    sizes = {p.suffix: p.stat().st_size for p in (tmp_path / "undisturbed").iterdir()}
    assert sizes[".tar"] > sizes[".parquet"] > 0
    for limit in (*cuts(sizes[".tar"], 6), *cuts(sizes[".parquet"], 4)):
        with pytest.raises(StorageError, match=str(folder)), files_no_larger_than(limit):
            run_pack(folder, samples[:-1])
        now = digests(folder)
        assert {n: d for n, d in now.items() if n in before} == before  # tars that no index names may stand beside them
        assert temporaries(folder) == []
    after = run_pack(folder, samples[:-1])
    assert {d for n, d in after.items() if n.endswith(".tar")} == {d for n, d in expected.items() if n.endswith(".tar")}
    assert run_pack(folder, samples[:-1]) == after


# --- whose trouble it is


def raises(error: OSError) -> Callable[..., Any]:
    def stage(*_: object) -> tuple[dict[str, Any], list[Any]]:
        raise error

    return stage


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_what_only_writing_can_raise_is_no_units_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(worker, "build_stage", lambda *_: raises(OSError(number, os.strerror(number))))
    with pytest.raises(StorageError) as e:
        work(tmp_path, source("good"))
    assert e.value.errno == number and str(tmp_path) in str(e.value) and str(e.value).endswith("it goes on where it stood")
    assert records(tmp_path) == {} and not list((tmp_path / "artifacts").glob("*/*/*/*"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO])
def test_a_path_tells_whose_trouble_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A source on a failing disk costs itself; an artifact on one stops the run. Without a path it is the unit's: sources are read."""
    monkeypatch.setattr(worker, "_PAUSE_S", 0.0)
    ours, units = OSError(number, "", str(tmp_path / "artifacts/x")), [OSError(number, "", "/nas/clip.mp4"), OSError(number, "")]
    monkeypatch.setattr(worker, "build_stage", lambda *_: raises(ours))
    with pytest.raises(StorageError, match="artifacts/x"):
        work(tmp_path, source("good"))
    assert records(tmp_path) == {}
    for k, error in enumerate(units):
        monkeypatch.setattr(worker, "build_stage", lambda *_, error=error: raises(error))
        work(tmp_path, source("good", k), session="next")
        assert records(tmp_path)[source("good", k).id].outcome == Outcome.FAILED


def test_a_stage_whose_file_breaks_off_leaves_its_unit_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(_: object, out: Outputs) -> tuple[dict[str, Any], list[Any]]:
        out.write("a.bin", b"x" * 100_000)
        return {}, []

    monkeypatch.setattr(worker, "build_stage", lambda *_: stage)
    with pytest.raises(StorageError, match=r"a\.bin: File too large"), files_no_larger_than(50_000):
        work(tmp_path, source("good"))
    assert records(tmp_path) == {} and not list((tmp_path / "artifacts").glob("*/*/*/*"))
    work(tmp_path, source("good"), session="next")
    assert records(tmp_path)[source("good").id].outcome == Outcome.DONE


def test_it_comes_out_of_another_process_as_it_was() -> None:
    """Ray Data puts advice of its own where it thinks that a message stands."""
    error = StorageError(errno.ENOSPC, "No space left on device", "/run/tables")
    said = str(error)
    error.args = (*error.args, "Failed to apply UDF transform")
    assert str(pickle.loads(pickle.dumps(error))) == said == "/run/tables: No space left on device; free space, then run again: it goes on where it stood"  # fmt: skip  # noqa: E501,S301


@pytest.mark.usefixtures("ray_session")
def test_a_storage_that_fails_under_a_suspect_does_not_condemn_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import cloudpickle

    from pipeline.executor import run_graph

    cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class DyingWorker(worker.StageWorker):
        def _stage(self, name: str) -> Callable[..., Any]:
            if not self._alone:
                os._exit(1)
            return raises(OSError(errno.ENOSPC, "No space left on device", self._root.at("artifacts/x.mp4")))

    monkeypatch.setattr("pipeline.executor.StageWorker", DyingWorker)
    with pytest.raises(StorageError, match=r"artifacts/x\.mp4: No space left on device; free space"):
        run_graph([row("ingest", source("good"))], (("ingest",),), tmp_path, config(), lambda *_: None)
    assert records(tmp_path) == {}


# --- real runs


class Disk:
    """A file system in memory, of any size, that only processes in a mount namespace of its own see."""

    def __init__(self, folder: Path, size_kb: int) -> None:
        self.folder = folder
        folder.mkdir()
        user = [] if os.geteuid() == 0 else ["-Ur"]
        script = f"mount -t tmpfs -o size={size_kb}k none {folder} && echo ready && exec sleep 3600"
        self._keeper = subprocess.Popen(
            ["unshare", *user, "-m", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._keeper.stdout and self._keeper.stderr
        if self._keeper.stdout.readline() != "ready\n":
            pytest.skip(f"no disk of its own for a test here: {self._keeper.stderr.read().strip()}")
        self._enter = ["nsenter", "-t", str(self._keeper.pid), "-m", *(["-U", "--preserve-credentials"] if user else [])]

    @property
    def seen(self) -> Path:
        """The folder, for processes that are not in the namespace."""
        return Path(f"/proc/{self._keeper.pid}/root{self.folder}")

    @property
    def used_kb(self) -> int:
        now = os.statvfs(self.seen)
        return (now.f_blocks - now.f_bfree) * now.f_frsize // 1024

    def resize(self, size_kb: int) -> None:
        subprocess.run([*self._enter, "mount", "-o", f"remount,size={size_kb}k", str(self.folder)], check=True)

    def crosspair(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return crosspair([*self._enter, *CROSSPAIR], *arguments)

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()


def crosspair(command: Sequence[str], *arguments: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(REPO)}
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=500, env=environment, **more)


def kilobytes(*folders: Path) -> int:
    """What these take on a disk that gives out pages of 4 KiB."""
    return sum(4 + (p.stat().st_size + 4095) // 4096 * 4 for folder in folders for p in (folder, *folder.rglob("*")))


def failed_units(root: Path) -> list[str]:
    raws = [json.loads(line) for p in root.glob("ledger/*/*.jsonl") for line in p.read_text().splitlines()]
    return [r["message"] for r in raws if r["outcome"] in (Outcome.FAILED, Outcome.QUARANTINED)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", 100)
    yield disk
    disk.close()


@pytest.mark.campaign
def test_a_run_on_a_disk_that_fills_again_and_again_ends_with_the_same_bytes(small_disk: Disk, finished: Finished, world: World) -> None:
    """It fills while clips are cut, while videos are rendered, and while shards are packed."""
    root = small_disk.folder / "run"
    (world.base / "small.yaml").write_text(yaml.safe_dump({**CONFIG, "run": str(root)}))
    prepared = [finished.root / f"artifacts/{stage}" for stage in ("ingest", "faces", "portraits")]
    generated = [finished.root / f"artifacts/{stage}" for stage in ("motion", "reenact", "regions")]
    first, second, third = (kilobytes(*f) for f in (prepared, generated, [finished.shards]))
    books = kilobytes(finished.root / "tables", finished.root / "ledger") * 2  # more segments than a finished run has
    plenty = 4 * (first + books + second + third)

    def fill(size_kb: int) -> subprocess.CompletedProcess[str]:
        small_disk.resize(size_kb)
        done = small_disk.crosspair("run", world.base / "small.yaml")
        assert done.returncode == 3, (done.stdout, done.stderr)
        assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"crosspair: {root}")
        assert "No space left on device; free space, then run again: it goes on where it stood" in done.stderr
        assert failed_units(small_disk.seen / "run") == []
        assert not (small_disk.seen / "run/shards/meshwarp/index.parquet").exists()
        return done

    for size_kb, artifacts in ((first // 2, "faces"), (first + books + second // 2, "reenact")):
        fill(size_kb)
        assert (small_disk.seen / "run/artifacts" / artifacts).is_dir()
    small_disk.resize(plenty)
    assert small_disk.crosspair("run", world.base / "small.yaml", "--until", "generate").returncode == 0
    done = fill(small_disk.used_kb + third // 2)
    assert "pack: 8 units" in done.stdout
    small_disk.resize(plenty)
    done = small_disk.crosspair("run", world.base / "small.yaml")
    assert done.returncode == 0, done.stderr
    assert small_disk.crosspair("verify", root).returncode == 0
    assert small_disk.crosspair("diff", finished.root, root).returncode == 0
    assert digests(small_disk.seen / "run/shards/meshwarp") == digests(finished.shards)
    assert temporaries(small_disk.seen) == []


def without_roots_rights() -> None:
    """In a child: root's own right to pass over permissions goes, all others stay."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


@pytest.mark.campaign
def test_folders_that_may_not_be_written_stop_the_run_one_after_the_other(copied: Path, finished: Finished, world: World) -> None:
    """In a run that has the last stage and the shards before it."""
    for folder in ("artifacts/regions", "ledger/regions", "shards/meshwarp"):
        shutil.rmtree(copied / folder)
        (copied / folder).mkdir()
    (copied / "tables/samples.parquet").unlink()
    config = copied.parent / "refused.yaml"
    clips = {"clips": [str(world.base / c) for c in ("clips.csv", "clips")], "portraits": [str(world.base / "images")]}
    config.write_text(yaml.safe_dump({**CONFIG, **clips, "run": "run"}))
    for refusing in (copied, *(copied / f for f in ("artifacts/regions", "ledger/regions", "tables", "shards/meshwarp"))):
        refusing.chmod(stat.S_IRUSR | stat.S_IXUSR)
        done = crosspair(CROSSPAIR, "run", config, preexec_fn=without_roots_rights)
        refusing.chmod(0o755)
        assert done.returncode == 3, (refusing, done.stdout, done.stderr)
        assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"crosspair: {refusing}/"), done.stderr
        assert "Permission denied; let this user read and write there, then run again" in done.stderr
        assert failed_units(copied) == []
    assert crosspair(CROSSPAIR, "run", config).returncode == 0
    assert verify(copied) == [] and crosspair(CROSSPAIR, "diff", finished.root, copied).returncode == 0
    assert digests(copied / "shards/meshwarp") == digests(finished.shards)
    assert temporaries(copied) == []
