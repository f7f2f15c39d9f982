"""Listing: everything the user names becomes a unit, whatever it is called, and nothing is invented."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from listed import list_sources
from s3server import S3Server

import schemas.store
from pipeline.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, says_nothing
from schemas.files import StorageError
from schemas.ids import digest, source_id
from schemas.store import ObjectStore
from schemas.units import SourceFile

NAMES = ("plain.mp4", "UPPER.MOV", "with space.mkv", 'it\'s "quoted".webm', "ünïcode ☃.mp4", "new\nline.mp4", "[x]*?.avi", "a.b.c.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clips = tmp_path / "clips"
    (clips / "deep" / "er").mkdir(parents=True)
    for name in NAMES:
        (clips / name).write_bytes(b"x")
    (clips / "deep" / "er" / "below.mp4").write_bytes(b"x")
    for other in ("notes.txt", ".hidden.mp4", "image.png", "noext"):
        (clips / other).write_bytes(b"x")
    (clips / "folder.mp4").mkdir()
    return clips


def names(entries: str | list[str], base: Path) -> list[str]:
    return [Path(s.uri).name for s in list_sources(entries, CLIP_SUFFIXES, base)]


def test_a_folder_is_listed_through_and_through(folder: Path) -> None:
    assert sorted(names("clips", folder.parent)) == sorted([*NAMES, "below.mp4"])


def test_a_folder_of_stills_gives_stills(folder: Path) -> None:
    assert [Path(s.uri).name for s in list_sources("clips", IMAGE_SUFFIXES, folder.parent)] == ["image.png"]


def test_the_order_is_that_of_the_uris(folder: Path) -> None:
    uris = [s.uri for s in list_sources(["clips/deep", "clips"], CLIP_SUFFIXES, folder.parent)]
    assert uris == sorted(set(uris))


def test_an_id_is_the_digest_of_the_uri(folder: Path) -> None:
    (one,) = list_sources(str(folder / "plain.mp4"), CLIP_SUFFIXES, Path("/"))
    assert (one.uri, one.id) == (str(folder / "plain.mp4"), source_id(str(folder / "plain.mp4")))


def test_globs_match_as_in_a_shell(folder: Path) -> None:
    assert names("clips/*.mkv", folder.parent) == ["with space.mkv"]
    assert names("clips/**/*.mp4", folder.parent).count("below.mp4") == 1
    assert names("clips/*", folder.parent).count("folder.mp4") == 0


def test_a_glob_works_in_a_folder_with_brackets(tmp_path: Path) -> None:
    base = tmp_path / "set [1]"
    base.mkdir()
    (base / "a.mp4").write_bytes(b"x")
    assert names("*.mp4", base) == ["a.mp4"]


def test_a_name_with_wildcards_is_itself(folder: Path) -> None:
    assert names("clips/[x]*?.avi", folder.parent) == ["[x]*?.avi"]


def test_one_file_listed_twice_counts_once(folder: Path) -> None:
    assert names(["clips/plain.mp4", "clips/*.mp4", str(folder)], folder.parent).count("plain.mp4") == 1


def test_links_are_units_too(folder: Path) -> None:
    """They get an outcome; silently leaving them out would not be one."""
    (folder / "link.mp4").symlink_to(folder / "plain.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nothing")
    assert {"link.mp4", "dangling.mp4"} <= set(names("clips", folder.parent))
    assert names("clips/dangling.mp4", folder.parent) == ["dangling.mp4"]


def test_identities_are_told_apart_by_default(tmp_path: Path) -> None:
    for sub in ("a", "b"):
        (tmp_path / sub).mkdir()
        (tmp_path / sub / "take1.mp4").write_bytes(b"x")
    identities = [s.identity for s in list_sources(".", CLIP_SUFFIXES, tmp_path)]
    assert len(set(identities)) == 2
    assert all(i.startswith("take1-") for i in identities)


def test_a_name_that_is_no_utf8_is_a_unit_that_can_be_written_down(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")).write_bytes(b"x")
    (one,) = list_sources(".", CLIP_SUFFIXES, tmp_path)
    one.uri.encode()
    one.identity.encode()
    assert "caf" in one.uri


@pytest.mark.parametrize("entry", ["nothing", "no/*.mp4", "clips/*.xyz"])
def test_an_entry_that_matches_nothing_is_named(folder: Path, entry: str) -> None:
    with pytest.raises(ValueError, match="matches no file") as e:
        list_sources(["clips", entry], CLIP_SUFFIXES, folder.parent)
    assert str(e.value).startswith(entry)


# --- manifests

ROWS = [
    {"uri": "clips/plain.mp4", "identity": "ann", "licence": "CC0", "consent": "yes"},
    {"uri": "clips/new\nline.mp4", "identity": "007", "licence": "", "consent": "true"},
    {"uri": "clips/vanished.mp4", "identity": "", "licence": 'CC "BY", 4.0', "consent": "2024-01-31"},
]


def manifest(base: Path, kind: str) -> str:
    path = base / f"list.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as f:
            writer = csv.DictWriter(f, ["uri", "identity", "licence", "consent"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path.name


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_says_who_and_on_what_terms(folder: Path, kind: str) -> None:
    listed = {Path(s.uri).name: s for s in list_sources(manifest(folder.parent, kind), CLIP_SUFFIXES, folder.parent)}
    assert set(listed) == {"plain.mp4", "new\nline.mp4", "vanished.mp4"}

    def about(name: str) -> tuple[str, str, str]:
        s: SourceFile = listed[name]
        return s.identity, s.licence, s.consent

    assert about("plain.mp4") == ("ann", "CC0", "yes")
    assert about("new\nline.mp4") == ("007", "", "true")
    assert about("vanished.mp4")[1:] == ('CC "BY", 4.0', "2024-01-31")
    assert listed["vanished.mp4"].identity.startswith("vanished-")


def test_a_column_of_numbers_stays_text(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,identity\na.mp4,001\nb.mp4,01\n")
    assert [s.identity for s in list_sources("list.csv", CLIP_SUFFIXES, tmp_path)] == ["001", "01"]


def test_paths_are_relative_to_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "list.csv").write_text("uri\nx.mp4\n/abs/y.mp4\n")
    uris = [s.uri for s in list_sources("sub/list.csv", CLIP_SUFFIXES, tmp_path)]
    assert uris == ["/abs/y.mp4", str(tmp_path / "sub" / "x.mp4")]


def test_what_a_manifest_says_wins_over_a_folder_listed_after_it(folder: Path) -> None:
    sources = list_sources([manifest(folder.parent, "csv"), "clips"], CLIP_SUFFIXES, folder.parent)
    assert [s.identity for s in sources if s.uri.endswith("plain.mp4")] == ["ann"]


@pytest.mark.parametrize("text", ["path,identity\na.mp4,x\n", "uri,identity\n,x\n"])
def test_a_manifest_without_uris_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=r"list\.csv"):
        list_sources("list.csv", CLIP_SUFFIXES, tmp_path)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl", "list.parquet"])
def test_a_broken_manifest_is_a_value_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"uri": \x00\xff')
    with pytest.raises(ValueError):
        list_sources(name, CLIP_SUFFIXES, tmp_path)


# --- in S3

KEYS = (*(n for n in NAMES if "\n" not in n), "-dash.mp4", "100%20#1?.mp4", "deep/er/below.mp4", "//twice.mp4", "notes.txt", ".hidden.mp4")
KEYS += ("image.png", "noext", "folder.mp4/", ".hidden/deep.mp4")


@pytest.fixture
def raw(s3: S3Server, request: pytest.FixtureRequest) -> str:
    """A prefix that holds KEYS, and beside it things that it does not hold."""
    bucket = s3.make_bucket(f"raw-{digest(request.node.name)}")
    store = ObjectStore(f"s3://{bucket}")
    for key in (*(f"clips/{k}" for k in KEYS), "clips.mp4", "clips-2/other.mp4", "x/clips/other.mp4"):
        store._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"x")
    return f"s3://{bucket}"


def uris(entries: str | list[str], base: str = "/") -> list[str]:
    return [s.uri for s in list_sources(entries, CLIP_SUFFIXES, Path(base))]


CLIPS = [k for k in KEYS if k not in ("notes.txt", ".hidden.mp4", "image.png", "noext", "folder.mp4/")]


@pytest.mark.parametrize("entry", ["clips", "clips/"])
def test_a_prefix_is_a_folder(raw: str, entry: str) -> None:
    assert uris(f"{raw}/{entry}") == sorted(f"{raw}/clips/{k}" for k in CLIPS)
    assert [s.uri for s in list_sources(f"{raw}/{entry}", IMAGE_SUFFIXES, Path())] == [f"{raw}/clips/image.png"]


def test_a_bucket_is_a_folder_too(raw: str) -> None:
    beside = [f"{raw}/{k}" for k in ("clips.mp4", "clips-2/other.mp4", "x/clips/other.mp4")]
    assert uris(raw) == uris(f"{raw}/") == sorted([*(f"{raw}/clips/{k}" for k in CLIPS), *beside])


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.mp4", "*.mkv", "**", "**/*.mp4", "**/be*", "*/*/*.mp4", "[!a-z]*.mp4", "?*.c.mp4", "[[]x]*", ".*", "deep/**/below.mp4", "no*"],
)
def test_a_glob_matches_what_it_does_on_a_disk(raw: str, tmp_path: Path, pattern: str) -> None:
    for key in KEYS:
        if not key.endswith("/") and "//" not in key:
            (tmp_path / "clips" / key).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "clips" / key).write_bytes(b"x")
    on_disk = list_sources(f"clips/{pattern}", CLIP_SUFFIXES, tmp_path, must_match=False)
    found = list_sources(f"{raw}/clips/{pattern}", CLIP_SUFFIXES, tmp_path, must_match=False)
    below = [s.uri.removeprefix(f"{raw}/clips/") for s in found]
    assert [b for b in below if "//" not in b and not b.startswith("/")] == [
        str(Path(s.uri).relative_to(tmp_path / "clips")) for s in on_disk
    ]


def test_every_object_is_itself_whatever_it_is_called(raw: str) -> None:
    for key in CLIPS:
        (one,) = list_sources(f"{raw}/clips/{key}", CLIP_SUFFIXES, Path())
        assert (one.uri, one.id) == (f"{raw}/clips/{key}", source_id(f"{raw}/clips/{key}")) and says_nothing(one)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_manifest_in_s3_says_who_and_on_what_terms(folder: Path, raw: str, kind: str) -> None:
    local = folder.parent / manifest(folder.parent, kind)
    ObjectStore(raw).put(local, f"deep/list.{kind}")
    listed = list_sources(f"{raw}/deep/list.{kind}", CLIP_SUFFIXES, Path())
    assert [s.uri for s in listed] == sorted(f"{raw}/deep/{r['uri']}" for r in ROWS)
    about = {(s.identity, s.licence, s.consent) for s in list_sources(local.name, CLIP_SUFFIXES, folder.parent) if s.identity != "vanished"}
    assert {(s.identity, s.licence, s.consent) for s in listed if not s.identity.startswith("vanished")} < about


def test_what_a_manifest_names_may_lie_anywhere(raw: str, tmp_path: Path) -> None:
    rows = ["x.mp4", "../clips/y.mp4", "./z.mp4", "../../../top.mp4", "a//b.mp4", "s3://other/z//z.mp4", "/disk/w.mp4"]
    ObjectStore(raw).write("deep/list.csv", "\n".join(["uri", *rows]).encode())
    there = [f"{raw}/{k}" for k in ("deep/x.mp4", "clips/y.mp4", "deep/z.mp4", "top.mp4", "deep/a//b.mp4")]
    assert uris(f"{raw}/deep/list.csv") == sorted([*there, "s3://other/z//z.mp4", "/disk/w.mp4"])
    (tmp_path / "list.csv").write_text("uri\nx.mp4\ns3://other/z//z.mp4\n")
    assert uris("list.csv", str(tmp_path)) == sorted([str(tmp_path / "x.mp4"), "s3://other/z//z.mp4"])


def test_what_a_manifest_in_s3_says_wins_over_its_prefix(raw: str) -> None:
    ObjectStore(raw).write("list.csv", b"uri,identity\nclips/plain.mp4,ann\n")
    for entries in ([f"{raw}/list.csv", f"{raw}/clips"], [f"{raw}/clips", f"{raw}/list.csv"]):
        sources = list_sources(entries, CLIP_SUFFIXES, Path())
        assert [s.identity for s in sources if s.uri == f"{raw}/clips/plain.mp4"] == ["ann"] and len(sources) == len(CLIPS)


@pytest.mark.parametrize("entry", ["nothing", "no/*.mp4", "clips/*.xyz", "clips/deep/*"])
def test_an_entry_in_s3_that_matches_nothing_is_named(raw: str, entry: str) -> None:
    with pytest.raises(ValueError, match="matches no file") as e:
        uris([f"{raw}/clips", f"{raw}/{entry}"])
    assert str(e.value).startswith(f"{raw}/{entry}")
    assert list_sources(f"{raw}/{entry}", CLIP_SUFFIXES, Path(), must_match=False) == []


def test_what_is_wrong_with_an_entry_in_s3_is_told(raw: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas.store, "_WAITS_S", (0.01,))
    for name in ("list.csv", "list.jsonl", "list.parquet"):
        ObjectStore(raw).write(name, b'{"uri": \x00\xff')
        with pytest.raises(ValueError, match=f"{raw}/{name}: "):
            uris(f"{raw}/{name}")
    for entry in ("s3://nobody-made-it/clips", "s3://", "s3:///clips/*.mp4", "s3://no bucket/x"):
        with pytest.raises(ValueError, match="no such bucket; see to its name") as e:
            uris(entry)
        assert str(e.value).startswith(entry)
        assert list_sources(entry, CLIP_SUFFIXES, Path(), must_match=False) == []
    s3.faults({"forbidden": 1.0})
    with pytest.raises(ValueError, match=rf"^{raw}/clips/\*: may not be listed: .*; allow s3:ListBucket"):
        uris(f"{raw}/clips/*")
    s3.faults({"slow_down": 1.0})
    with pytest.raises(StorageError, match=f"^{raw}"):
        uris(f"{raw}/clips")


def test_without_s3fs_the_remedy_is_told_before_any_unit_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    (tmp_path / "list.csv").write_text("uri\ns3://bucket/x.mp4\n")
    for entry in ("list.csv", "s3://bucket/raw/*.mp4"):
        with pytest.raises(ValueError, match=r"^s3://bucket.*: object stores need s3fs: install crosspair\[s3\]"):
            list_sources(entry, CLIP_SUFFIXES, tmp_path)


def test_a_glob_of_one_level_does_not_list_what_lies_below(raw: str, s3: S3Server) -> None:
    s3.faults({})
    assert uris(f"{raw}/clips/*.mkv") == [f"{raw}/clips/with space.mkv"]
    assert s3.counts().requests == {"HEAD": 1, "GET": 2}
