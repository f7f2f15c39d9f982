"""Precomputed latents: those that training would encode, of which only windows are read; and tars that are kept in step with the set."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL
from pairset import members_of, write_pair_set
from safetensors.torch import load

from model.codec import DctCodec
from model.latents import Latents, Written, write_latents
from model.vae import VaeCodec
from schemas.ids import file_digest
from schemas.latents import STILL, checksum, prune, read_latents_index
from schemas.sample import INDEX_NAME, INDEX_SCHEMA, SOURCE, TARGET, decode_image, read_index, read_members
from schemas.store import DiskStore, open_store
from schemas.video import decode_video, resized

PX = 192  # at which each sample of these fills a tar of 1 MB
FRAMES = {"a": 40, "b": 36, "c": 48}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    return write_pair_set(root / "shards" / "test", {k: members_of(k, n, root) for k, n in FRAMES.items()})


@pytest.fixture(scope="module")
def made(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set with latents of the weights-free codec, a tar a sample."""
    folder = tmp_path_factory.mktemp("made") / "test"
    shutil.copytree(bare, folder)
    assert encode(folder) == Written(made=3)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copied")
    return tmp_path / "copied"


def encode(folder: Path) -> Written:
    return write_latents(folder, DctCodec(), frame_px=PX, tar_mb=1)


def tiny_vae(folder: Path, seed: int = 0) -> VaeCodec:
    """Random weights, four levels as SD3.5's: a factor of 8."""
    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    ).save_pretrained(folder / "vae")
    return VaeCodec(folder)


def pictures(folder: Path, key: str, px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A sample's target frames and its still, as training is shown them."""
    members = read_members(folder, next(r for r in read_index(folder).to_pylist() if r["sample"] == key), (SOURCE, TARGET))
    target = np.stack([resized(f, px) for f in decode_video(members[TARGET])])
    return torch.from_numpy(target), torch.from_numpy(resized(decode_image(members[SOURCE]), px))


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def tars(folder: Path) -> dict[str, str]:
    return {r["sample"]: r["tar"] for r in index_rows(folder)}


def index_rows(folder: Path) -> list[dict]:
    index = read_latents_index(open_store(folder / "latents"))
    assert index is not None
    return list(index.rows)


def change_set(folder: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    rows = change(read_index(folder).to_pylist())
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / INDEX_NAME)


def assert_is_rounded(found: torch.Tensor, wanted: torch.Tensor, more: float = 0.0) -> None:
    """To 16 bits: 11 of mantissa, and steps of 2^-24 near zero."""
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    assert bool(((found - wanted).abs() <= wanted.abs() * 2**-11 + 2**-25 + more).all())
    assert not torch.equal(found, wanted) and wanted.std() > 1e-3


# --- what is read


def test_windows_are_what_training_would_encode(made: Path) -> None:
    codec = DctCodec()
    latents = Latents(made, codec, PX)
    assert len(latents) == 3
    for key, frames in FRAMES.items():
        target, still = pictures(made, key, PX)
        for first, count, source_frame in ((0, 7, 9), (5, 6, 0), (frames - 1, 1, STILL), (0, frames, STILL), (23, 3, frames - 1)):
            window = latents.window(key, first, count, source_frame)
            assert window is not None
            assert_is_rounded(window[0], codec.encode(target[first : first + count]))
            source = still if source_frame == STILL else target[source_frame]
            assert_is_rounded(window[1], codec.encode(source[None])[0])


def test_latents_of_a_vae(bare: Path, tmp_path: Path) -> None:
    """They differ from those of another batch by the rounding, and by what the order of float32 sums makes of it."""
    folder, codec = tmp_path / "set", tiny_vae(tmp_path / "a")
    shutil.copytree(bare, folder)
    change_set(folder, lambda rows: rows[:1])
    assert write_latents(folder, codec, frame_px=64) == Written(made=1)
    window = Latents(folder, codec, 64).window("a", 22, 5, 3)
    target, _ = pictures(folder, "a", 64)
    assert window is not None
    assert_is_rounded(window[0], codec.encode(target[22:27]), more=1e-5)
    assert_is_rounded(window[1], codec.encode(target[3:4])[0], more=1e-5)
    (same,) = index_rows(folder)
    assert same["frames"] == 40 and encode_again(folder, codec) == Written(kept=1)
    with pytest.raises(ValueError, match=r"codec vae with other weights.*take this folder away"):
        Latents(folder, tiny_vae(tmp_path / "b", seed=1), 64)
    with pytest.raises(ValueError, match="of codec vae at 64 px, not of dct at 64 px"):
        write_latents(folder, DctCodec(), frame_px=64)


def encode_again(folder: Path, codec: VaeCodec) -> Written:
    return write_latents(folder, codec, frame_px=64)


def test_only_the_window_is_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    read_ranges = DiskStore.read_ranges

    def spy(self: DiskStore, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        nonlocal read
        found = read_ranges(self, name, ranges)
        read += sum(map(len, found))
        return found

    latents = Latents(made, DctCodec(), PX)
    monkeypatch.setattr(DiskStore, "read_ranges", spy)
    latents.window("c", 3, 5, 20)
    assert read == 6 * (2 * 16 * 24 * 24 + 4)


def test_members_are_plain_safetensors_in_plain_tars(made: Path) -> None:
    latents = Latents(made, DctCodec(), PX)
    for key, tar_name in tars(made).items():
        with tarfile.open(made / "latents" / tar_name, "r:") as tar:
            (member,) = tar.getmembers()
            assert member.name == f"{key}.latents.safetensors" and member.mtime == 0
            stream = tar.extractfile(member)
            assert stream is not None
            arrays = load(stream.read())
        assert {k: (x.dtype, tuple(x.shape)) for k, x in arrays.items() if k != "checksums"} == {
            "target": (torch.float16, (FRAMES[key], 16, 24, 24)),
            "still": (torch.float16, (16, 24, 24)),
        }
        window = latents.window(key, 0, FRAMES[key], STILL)
        assert window is not None
        assert torch.equal(window[0], arrays["target"].float()) and torch.equal(window[1], arrays["still"].float())


def test_others_read_them_beside_the_samples(made: Path) -> None:
    import webdataset as wds

    (tar,) = {t for k, t in tars(made).items() if k == "a"}
    (sample,) = list(wds.WebDataset(str(made / "latents" / tar), shardshuffle=False))
    assert sample["__key__"] == "a" and load(sample["latents.safetensors"])["target"].shape == (40, 16, 24, 24)


# --- what is refused


def test_what_does_not_fit_is_refused_with_a_remedy(made: Path, bare: Path) -> None:
    with pytest.raises(ValueError, match=r"no latents; make them \(`crosspair latents SHARDS --codec dct --frame-px 192`\)"):
        Latents(bare, DctCodec(), PX)
    with pytest.raises(ValueError, match="of codec dct at 192 px, not of dct at 96 px; use them"):
        Latents(made, DctCodec(), 96)
    with pytest.raises(ValueError, match="takes multiples of 8"):
        Latents(made, DctCodec(), 100)
    with pytest.raises(ValueError, match=r"index\.parquet: no index"):
        write_latents(made.parent, DctCodec())


def test_latents_of_other_bytes_of_a_sample_are_none(made: Path) -> None:
    digests = {r["sample"]: r["digest"] for r in read_index(made).to_pylist()}
    latents = Latents(made, DctCodec(), PX, digests | {"a": "0" * 20})
    assert latents.window("a", 0, 1, STILL) is None and latents.window("z", 0, 1, STILL) is None
    assert latents.window("b", 0, 1, STILL) is not None
    assert latents.digest != Latents(made, DctCodec(), PX).digest == Latents(made, DctCodec(), PX, digests).digest


def test_damage_is_noticed_where_it_is_read(copied: Path) -> None:
    row = next(r for r in index_rows(copied) if r["sample"] == "b")
    path = copied / "latents" / row["tar"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["size"] - 1] ^= 1  # in the last frame's
    path.write_bytes(data)
    latents = Latents(copied, DctCodec(), PX)
    assert latents.window("b", 0, 35, STILL) is not None
    for first, source_frame in ((35, 0), (0, 35)):
        with pytest.raises(ValueError, match=rf"{row['tar']}: latents of b are damaged; take this tar away"):
            latents.window("b", first, 1, source_frame)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{row['tar']}: missing; `crosspair latents` makes it anew"):
        latents.window("b", 0, 1, STILL)
    assert encode(copied) == Written(kept=2, made=1)
    assert latents.window("b", 35, 1, 0) is not None and tars(copied)["b"] == "train-000003.tar"


def test_a_checksum_knows_whose_and_which_picture_it_is_of() -> None:
    assert len({checksum(key, picture, b"latents") for key in "ab" for picture in (STILL, 0, 1)}) == 6


# --- keeping step


def test_done_again_it_changes_nothing(copied: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (copied / "latents").iterdir()}
    assert encode(copied) == Written(kept=3)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (copied / "latents").iterdir()} == before


def test_samples_that_went_and_that_came(copied: Path, bare: Path) -> None:
    change_set(copied, lambda rows: [r if r["sample"] != "a" else r | {"digest": "1" * 20} for r in rows if r["sample"] != "c"])
    before = files(copied / "latents")
    held = Latents(copied, DctCodec(), PX, {r["sample"]: r["digest"] for r in read_index(bare).to_pylist()})
    assert encode(copied) == Written(kept=1, made=1)
    assert tars(copied) == {"b": "train-000001.tar", "a": "train-000003.tar"}
    after = files(copied / "latents")
    assert after.keys() == {"index.parquet", "train-000001.tar", "train-000003.tar"}
    assert after["train-000001.tar"] == before["train-000001.tar"]
    assert held.window("c", 0, 1, STILL) is None and held.window("b", 0, 1, STILL) is not None
    shutil.copy(bare / INDEX_NAME, copied / INDEX_NAME)
    assert encode(copied) == Written(kept=1, made=2)
    assert tars(copied) == {"b": "train-000001.tar", "a": "train-000004.tar", "c": "train-000005.tar"}


def test_neighbours_in_a_tar_move_as_they_are(bare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(bare, folder)
    write_latents(folder, DctCodec(), frame_px=64)
    assert set(tars(folder).values()) == {"train-000000.tar"}
    before = {r["sample"]: r["digest"] for r in index_rows(folder)}
    held = Latents(folder, DctCodec(), 64)
    (folder / "latents" / "train-000007.tar").write_bytes(b"of a killed process")
    digests = {r["sample"]: r["digest"] for r in read_index(folder).to_pylist() if r["sample"] != "b"}
    assert prune(open_store(folder), digests) == 1 and prune(open_store(folder), digests) == 0
    assert tars(folder) == {"a": "train-000001.tar", "c": "train-000001.tar"} and len(list((folder / "latents").glob("*"))) == 2
    assert {r["sample"]: r["digest"] for r in index_rows(folder)} == {k: d for k, d in before.items() if k != "b"}
    assert held.window("c", 40, 8, 0) is not None and held.window("b", 0, 1, STILL) is None
    assert prune(open_store(folder), {}) == 2 and [p.name for p in (folder / "latents").iterdir()] == [INDEX_NAME]
    assert write_latents(folder, DctCodec(), frame_px=64) == Written(made=3) and set(tars(folder).values()) == {"train-000002.tar"}


def damage_target(folder: Path, place: int) -> None:
    row = read_index(folder).to_pylist()[place]
    target = next(m for m in row["members"] if m["name"] == TARGET)
    with (folder / row["tar"]).open("r+b") as f:
        f.seek(target["offset"] + 100)
        f.write(b"damage")


def test_a_bad_sample_is_left_out_and_said(copied: Path) -> None:
    damage_target(copied, 1)
    shutil.rmtree(copied / "latents")
    said: list[str] = []
    written = write_latents(copied, DctCodec(), frame_px=PX, tar_mb=1, say=said.append)
    assert written.made == 2 and written.bad.keys() == {"b"} and "does not have its digest" in written.bad["b"]
    assert tars(copied) == {"a": "train-000000.tar", "c": "train-000001.tar"} and any(s.startswith("b: left out: ") for s in said)
    assert Latents(copied, DctCodec(), PX).window("b", 0, 1, STILL) is None


def test_latents_that_are_no_numbers_are_left_out(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_really = DctCodec.encode
    monkeypatch.setattr(DctCodec, "encode", lambda self, x: encode_really(self, x) * (1e6 if len(x) == 12 else 1))
    shutil.rmtree(copied / "latents")
    assert encode(copied).bad == {"b": "some latents are no finite numbers of 16 bits"}  # the only one of 36 frames


# --- killed


class Killed(BaseException):
    pass


@contextmanager
def killing(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[list[int]]:
    """Kills at the `step`-th change of the disk: before it, or, of a file, when half of it is written. Temporary files stay, as they do."""
    done = [0]

    def count() -> None:
        if done[0] == step:
            raise Killed
        done[0] += 1

    write, writing, delete = DiskStore.write, DiskStore.writing, DiskStore.delete

    @contextmanager
    def writing_half(self: DiskStore, name: str) -> Iterator[object]:
        if done[0] == step:
            self.root.mkdir(exist_ok=True)
            (self.root / f".{name}.tmp-12345678").write_bytes(b"half")
        count()
        with writing(self, name) as f:
            yield f

    def deleting(self: DiskStore, names: list[str]) -> None:
        for name in names:
            count()
            delete(self, [name])

    with monkeypatch.context() as m, suppress(Killed):
        m.setattr(DiskStore, "write", lambda self, name, data: (count(), write(self, name, data)))
        m.setattr(DiskStore, "writing", writing_half)
        m.setattr(DiskStore, "delete", deleting)
        yield done


def test_killed_anywhere_it_goes_on_to_the_same_bytes(bare: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing, and from latents of which one sample went and two share a tar."""

    def changed(folder: Path) -> None:
        write_latents(folder, DctCodec(), frame_px=PX, tar_mb=2)
        change_set(folder, lambda rows: rows[1:])
        assert set(tars(folder).values()) == {"train-000000.tar", "train-000001.tar"}

    def rarely(_: Path) -> None:
        monkeypatch.setattr("model.latents._PUBLISHED_PARTS", 0)  # the index at the end alone

    for name, begin in (("new", lambda folder: None), ("changed", changed), ("rarely", rarely)):
        start = tmp_path / name
        shutil.copytree(bare, start)
        begin(start)
        whole = tmp_path / f"{name} whole"
        shutil.copytree(start, whole)
        with killing(monkeypatch, -1) as steps:
            encode(whole)
        assert steps[0] >= 3 and (name == "changed" or files(whole) == files(made))
        for step in range(steps[0]):
            folder = tmp_path / f"{name} {step}"
            shutil.copytree(start, folder)
            with killing(monkeypatch, step):
                encode(folder)
                raise AssertionError("nothing was killed")
            if (folder / "latents" / INDEX_NAME).is_file():  # what is published holds
                assert all(Latents(folder, DctCodec(), PX).window(k, 0, 2, STILL) for k in tars(folder) if k != "a")
            encode(folder)
            assert files(folder) == files(whole), (name, step)


# --- pairs of one clip


def test_what_pairs_of_a_clip_share_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `a` and `c`; each has latents of its own all the same. A kill between them changes no byte, and damage of one costs that one."""
    start = write_pair_set(tmp_path / "start", {k: members_of(k, n, tmp_path) for k, n in {"a": 36, "b": 40, "c": 36}.items()})
    whole = tmp_path / "whole"
    shutil.copytree(start, whole)
    encoded, encode_really = list[int](), DctCodec.encode

    def counted(self: DctCodec, x: torch.Tensor) -> torch.Tensor:
        encoded.append(len(x))
        return encode_really(self, x)

    with monkeypatch.context() as m, killing(monkeypatch, -1) as steps:
        m.setattr(DctCodec, "encode", counted)
        assert encode(whole) == Written(made=3)
    assert sum(encoded) == 1 + 36 + 1 + 40
    assert tars(whole) == {"a": "train-000000.tar", "c": "train-000001.tar", "b": "train-000002.tar"}
    latents = Latents(whole, DctCodec(), PX)
    for key in "abc":
        target, still = pictures(whole, key, PX)
        window = latents.window(key, 0, len(target), STILL)
        assert window is not None
        assert_is_rounded(window[0], DctCodec().encode(target))
        assert_is_rounded(window[1], DctCodec().encode(still[None])[0])
    for step in range(steps[0]):
        folder = tmp_path / str(step)
        shutil.copytree(start, folder)
        with killing(monkeypatch, step):
            encode(folder)
            raise AssertionError("nothing was killed")
        encode(folder)
        assert files(folder) == files(whole), step
    damage_target(start, 0)
    written = encode(start)
    assert written.bad.keys() == {"a"} and written.made == 2 and Latents(start, DctCodec(), PX).window("c", 0, 36, STILL) is not None


# --- splits, codecs


def test_splits_have_tars_of_their_own(copied: Path) -> None:
    change_set(copied, lambda rows: [r | {"split": "val" if r["sample"] == "a" else "train"} for r in rows])
    shutil.rmtree(copied / "latents")
    write_latents(copied, DctCodec(), frame_px=PX)
    assert tars(copied) == {"b": "train-000000.tar", "c": "train-000000.tar", "a": "val-000001.tar"}
    digests = {r["sample"]: r["digest"] for r in read_index(copied).to_pylist()}
    prune(open_store(copied), {k: d for k, d in digests.items() if k != "b"})
    assert tars(copied) == {"c": "train-000002.tar", "a": "val-000001.tar"}
    assert Latents(copied, DctCodec(), PX).window("c", 0, 48, STILL) is not None


def test_a_fingerprint_is_of_the_weights_and_not_of_their_files(tmp_path: Path) -> None:
    codec, other = tiny_vae(tmp_path / "a"), tiny_vae(tmp_path / "b", seed=1)
    vae = AutoencoderKL.from_pretrained(tmp_path / "a" / "vae")
    vae.save_pretrained(tmp_path / "shards" / "vae", max_shard_size="20KB")
    assert len(list((tmp_path / "shards" / "vae").glob("*.safetensors"))) > 1
    assert VaeCodec(tmp_path / "shards").fingerprint() == codec.fingerprint()
    vae.register_to_config(shift_factor=0.0)
    vae.save_pretrained(tmp_path / "shift" / "vae")
    assert len({c.fingerprint() for c in (codec, other, VaeCodec(tmp_path / "shift"), DctCodec(), DctCodec())}) == 4


def test_frames_of_several_sizes_need_a_side(copied: Path) -> None:
    change_set(copied, lambda rows: [r | {"size_px": 64 + i} for i, r in enumerate(rows)])
    with pytest.raises(ValueError, match=r"frames are \[64, 65, 66\] px; name the side"):
        write_latents(copied, DctCodec())
