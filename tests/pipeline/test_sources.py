"""Listing: everything the user names becomes a unit, whatever it is called, and nothing is invented."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import CLIP_SUFFIXES, IMAGE_SUFFIXES, list_sources
from schemas.ids import source_id
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
