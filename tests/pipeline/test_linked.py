"""Who was linked is kept and never believed: whatever is kept, what comes out is what linking gives."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_identities import embedding, sighting, worlds

from pipeline import linked as linked_module
from pipeline.identities import Sighting, link
from pipeline.linked import linked, read_linked, write_linked
from schemas.store import DiskStore


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> DiskStore:
    return DiskStore(tmp_path_factory.mktemp("linked"))


THRESHOLDS = st.sampled_from([(0.5, 0.3), (0.5, 0.4), (0.9, 0.3)])


@given(st.lists(st.tuples(worlds(), THRESHOLDS), min_size=2, max_size=3))
def test_what_is_kept_changes_nothing(root: DiskStore, runs: list[tuple[list[Sighting], tuple[float, float]]]) -> None:
    for world, (across, inside) in [*runs, runs[0], runs[0]]:
        found = linked(world, across, inside, read_linked(root))
        assert found.people == link(world, min_similarity=across, min_similarity_in_file=inside)
        write_linked(root, found)
        assert read_linked(root) == found


WORLD = [sighting("a", "x", embedding(0)), sighting("b", "y", embedding(0, 0.1), named="ann"), sighting("c", "z")]


def never(*_: object, **__: object) -> None:
    raise AssertionError("linked again")


def test_of_the_same_inputs_nobody_is_linked_again(root: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_linked(root, linked(WORLD, 0.5, 0.3, None))
    before = read_linked(root)
    monkeypatch.setattr(linked_module, "link", never)
    assert linked(WORLD[::-1], 0.5, 0.3, before) == before
    changes = {"embedding": embedding(0, 0.01), "named": True}
    for field in fields(Sighting):
        was = getattr(WORLD[0], field.name)
        other = changes.get(field.name, was + 1 if isinstance(was, int) else f"{was}?")
        with pytest.raises(AssertionError, match="linked again"):
            linked([replace(WORLD[0], **{field.name: other}), *WORLD[1:]], 0.5, 0.3, before)
    for world, *thresholds in ((WORLD[1:], 0.5, 0.3), (WORLD, 0.6, 0.3), (WORLD, 0.5, 0.2)):
        with pytest.raises(AssertionError, match="linked again"):
            linked(world, *thresholds, before)
    monkeypatch.setattr(linked_module, "_code", lambda: "of another version")
    with pytest.raises(AssertionError, match="linked again"):
        linked(WORLD, 0.5, 0.3, before)


def test_what_is_damaged_is_as_good_as_none(tmp_path: Path) -> None:
    root = DiskStore(tmp_path)
    assert read_linked(root) is None
    found = linked(WORLD, 0.5, 0.3, None)
    write_linked(root, found)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(whole), 200, replace=False).tolist():
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(rng.integers(8))]) + whole[at + 1 :])
        kept = read_linked(root)
        assert kept is None or kept.people == found.people, "the digest of its inputs may be hit: then it is of none that there are"
        assert linked(WORLD, 0.5, 0.3, kept) == found
    for data in (b"", b"[]", b"{}", b'"people"', whole[:-9], whole.replace(b'"members"', b'"numbers"')):
        file.write_bytes(data)
        assert read_linked(root) is None
