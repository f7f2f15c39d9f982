"""Derived: all that comes of a person, as performer and as appearance. A pure function of what a run says of its units.

1. His clips and portraits are the members of his identity, of all identities that became his, and what the manifest calls by his name.
2. A file none of whose clips is another person's is his as a whole, with all that was ever cut from it by any settings.
3. Of a file that shows others too, what is surely theirs stays: members of their identities, and clips that show the same place at the same
   time as one of those. All else of it goes, since it may show him.
4. Copies are his as well: files of the same content, and near duplicates of his clips and portraits, whatever their files are called.
5. Pairs go in which one of his clips performs or one of his portraits appears.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from pipeline import tables
from pipeline.ledger import Ledger
from pipeline.people import Earlier
from pipeline.sources import file_identity
from pipeline.storage import read_run_file
from schemas.ids import portrait_id_of_frame
from schemas.outcomes import Outcome
from schemas.sample import INDEX_NAME, read_index
from schemas.store import Store

Row = dict[str, Any]
_SAME_CROP = 0.6  # overlap of two crops, intersection over union: two heads side by side have less
_SAME_TIME = 0.5  # of the shorter of two clips


@dataclass
class Books:
    """What a run says of its units, under all settings that it was ever run with. Clips and portraits are units here, by id.

    Attributes:
        identities: rows of the table.
        uri, named: of each source: its URIs, and what it is called now.
        contents: of each source, digests.
        shots: of each source.
        units: of each source, clips and image portraits.
        clips: as the ledger has them, each by every setting.
        near: unit -> the one of which it is a near duplicate.
        says: unit -> identity, of accepted ones; who that is where the table of identities is not there yet.
        pairs: pair -> its clip, portrait, performer and appearance, as far as any place says.
        refused: sources whose content was found to be forgotten.
        newer: clips and image portraits by the present settings of which the tables know nothing yet: nobody can say whose they are.
    """

    identities: list[Row] = field(default_factory=list)
    uri: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    named: dict[str, str] = field(default_factory=dict)
    contents: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    shots: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    units: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    clips: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))
    stills: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # of each clip
    near: dict[str, str] = field(default_factory=dict)
    says: dict[str, str] = field(default_factory=dict)
    pairs: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    refused: set[str] = field(default_factory=set)
    newer: set[str] = field(default_factory=set)

    @property
    def who(self) -> dict[str, str]:
        """Unit -> identity. The tables of clips and portraits are the newer ones, where a run ended between them and that of identities."""
        return {m: r["identity"] for r in self.identities for m in r["members"]} | self.says


@dataclass(frozen=True)
class Derived:
    """What is to go, by kind; `partly` are URIs and contents of files of which a part stays."""

    names: frozenset[str] = frozenset()
    sources: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    shots: frozenset[str] = frozenset()
    clips: frozenset[str] = frozenset()
    portraits: frozenset[str] = frozenset()
    pairs: frozenset[str] = frozenset()
    partly: frozenset[str] = frozenset()

    @property
    def everything(self) -> frozenset[str]:
        return self.names | self.sources | self.uris | self.contents | self.shots | self.clips | self.portraits | self.pairs


def read_books(root: Store) -> Books:
    """Raises ValueError for a damaged table or segment of the ledger."""
    books, ledger = Books(identities=tables.load(root, "identities")), Ledger(root)
    prints = read_run_file(root)["fingerprints"]
    for r in tables.load(root, "sources"):
        _note_source(books, {**r, "id": r["source"]}, r["content"])
        books.named[r["source"]] = r["identity"]
    for stage in ("ingest", "faces", "portraits"):
        for raw in ledger.raws(stage):
            source = raw["unit"] if stage != "faces" else raw["parent"]
            _note_source(books, {"id": source, "uri": raw["source_uri"]}, raw["data"].get("content", ""))
            if stage == "faces":
                books.shots[source].add(raw["unit"])
            elif raw["reason"] == "forgotten":
                books.refused.add(source)
            for child in raw["children"]:
                _note_source(books, child["source"], child["content"])
                if stage == "ingest":
                    books.shots[source].add(child["id"])
                    continue
                books.units[child["source"]["id"]].add(child["id"])
                if raw["fingerprint"] == prints.get(stage):
                    books.newer.add(child["id"])
                if stage == "faces":
                    books.clips[child["id"]].append(child)
                    books.stills[child["id"]].add(portrait_id_of_frame(child["id"], child["still_frame"]))
    for raw in ledger.raws("reenact"):
        for child in raw["children"]:
            books.pairs[raw["unit"]] |= {child["pair"]["clip"]["id"], child["pair"]["portrait"]["id"]}
    _note_tables(books, root)
    return books


def _note_source(books: Books, source: Mapping[str, str], content: str | None) -> None:
    books.uri[source["id"]].add(source["uri"])
    if content:
        books.contents[source["id"]].add(content)


def _note_tables(books: Books, root: Store) -> None:
    for name in ("clips", "portraits"):
        for r in tables.load(root, name):
            unit = r[name[:-1]]
            if name == "portraits" and r["clip"]:
                books.stills[r["clip"]].add(unit)
                continue
            books.units[r["source"]].add(unit)
            books.newer.discard(unit)
            if r["near_duplicate_of"]:
                books.near[unit] = r["near_duplicate_of"]
            if r["outcome"] == Outcome.DONE:
                books.says[unit] = r["identity"]
    people = ("clip", "portrait", "performer", "appearance")
    found: list[tuple[str, Any]] = [("pair", tables.pairs(root))]
    for folder in root.folders("shards", depth=1):
        if root.size(f"{folder}/{INDEX_NAME}") >= 0:
            found.append(("sample", read_index(root.sub(folder))))
    for key, table in found:
        for row in table.select([key, *people]).to_pylist():
            books.pairs[row[key]] |= {row[k] for k in people}


def called(books: Books, person: str) -> set[str]:
    """All names of a person, by one of them: an identity, an older one that became it, the manifest's name, or what a file is called that
    shows one person only. Empty for somebody unknown.

    Raises:
        ValueError: what a file is called that shows several people.
    """
    rows = books.identities
    if not any(person in (r["identity"], r["name"]) for r in rows):
        files = [s for s, name in books.named.items() if name == person and any(file_identity(uri) == person for uri in books.uri[s])]
        there = sorted({books.who[u] for s in files for u in books.units[s] if u in books.who})
        if len(there) > 1:
            raise ValueError(f"{person} is a file that shows several people; name one of them: {', '.join(there)}")
        if there and there[0] != person:
            return called(books, there[0])
    became = Earlier.of(rows).became
    finals = {became[r["identity"]] for r in rows if person in (r["identity"], r["name"])}
    names = {n for r in rows if became[r["identity"]] in finals for n in (r["identity"], r["name"]) if n}
    known = {*books.named.values(), *books.says.values()}
    return names | ({person} & known)


def known_names(books: Books) -> set[str]:
    return {n for r in books.identities for n in (r["identity"], r["name"]) if n} | {*books.named.values(), *books.says.values()}


def derived(
    books: Books,
    *,
    names: Set[str] = frozenset(),
    sources: Set[str] = frozenset(),
    units: Set[str] = frozenset(),
    partly: Set[str] = frozenset(),
) -> Derived:
    """What comes of a person of these names, of whole `sources`, and of clips and portraits (`units`).

    `partly`: sources of which it is known that a part was forgotten.
    """
    source_of: defaultdict[str, set[str]] = defaultdict(set)
    for source, ids in books.units.items():
        for unit in ids:
            source_of[unit].add(source)
    with_content: defaultdict[str, set[str]] = defaultdict(set)
    for source, contents in books.contents.items():
        for content in contents:
            with_content[content].add(source)
    others = {u for u, identity in books.who.items() if identity not in names}
    gone = set(units) | (books.who.keys() - others)
    whole = _copies(sources, books, with_content)
    touched = set(partly) | {s for s, name in books.named.items() if name in names}
    while True:
        before = len(gone), len(whole), len(touched)
        gone |= {u for u, of in books.near.items() if of in gone}
        touched = _copies(touched | {s for u in gone for s in source_of[u]}, books, with_content)
        for source in touched | whole:
            theirs = books.units[source] & others - gone
            if source in whole or not theirs:
                whole.add(source)
                gone |= books.units[source]
            else:
                gone |= {u for u in books.units[source] - theirs if not _shows_one_of(u, theirs, books)}
        if (len(gone), len(whole), len(touched)) == before:
            break
    clips = {u for u in gone if u in books.clips or u in books.stills}
    portraits = (gone - clips) | {p for c in clips for p in books.stills[c]}
    all_his = clips | portraits | names
    return Derived(
        names=frozenset(names),
        sources=frozenset(whole),
        uris=frozenset(u for s in whole for u in books.uri[s]),
        contents=frozenset(c for s in whole for c in books.contents[s]),
        shots=frozenset(x for s in whole for x in books.shots[s]),
        clips=frozenset(clips),
        portraits=frozenset(portraits),
        pairs=frozenset(p for p, of in books.pairs.items() if of & all_his),
        partly=frozenset(x for s in touched - whole for x in books.uri[s] | books.contents[s]),
    )


def _copies(sources: Iterable[str], books: Books, with_content: Mapping[str, set[str]]) -> set[str]:
    """The sources and those of the same content."""
    return {*sources, *(copy for s in sources for c in books.contents[s] for copy in with_content[c])}


def _shows_one_of(unit: str, theirs: Set[str], books: Books) -> bool:
    """Whether a clip shows what one of these shows: the same place, for half of the time at least."""
    return any(_same(a, b) for a in books.clips[unit] for other in theirs for b in books.clips[other]) if unit in books.clips else False


def _same(a: Row, b: Row) -> bool:
    if a["content"] != b["content"]:
        return False
    common = min(a["last_frame"], b["last_frame"]) - max(a["first_frame"], b["first_frame"]) + 1
    shorter = 1 + min(c["last_frame"] - c["first_frame"] for c in (a, b))
    return common >= _SAME_TIME * shorter and _overlap(a["crop"], b["crop"]) >= _SAME_CROP


def _overlap(a: Iterable[int], b: Iterable[int]) -> float:
    """Of two squares x, y, side: intersection over union."""
    (ax, ay, an), (bx, by, bn) = a, b
    wide, high = (min(p + an, q + bn) - max(p, q) for p, q in ((ax, bx), (ay, by)))
    common = max(wide, 0) * max(high, 0)
    return common / (an * an + bn * bn - common)
