"""The shard sample: its members, their types, and reading one back. Everything that leaves crosspair passes through here."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import BinaryIO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.arrays import decode_arrays, encode_arrays
from schemas.files import StorageError
from schemas.ids import checksum, content_digest
from schemas.store import Place, Store, open_store

FORMAT = "crosspair/1"

# Member suffixes in the order in which they stand in a tar. `audio.flac` is left out where there is no sound.
SOURCE, TARGET, DRIVING = "source.png", "target.mp4", "driving.mp4"
REGIONS_MEMBER, CONTROLS, AUDIO, INFO = "regions.npz", "controls.npz", "audio.flac", "json"
MEMBERS = (AUDIO, CONTROLS, DRIVING, INFO, REGIONS_MEMBER, SOURCE, TARGET)
OPTIONAL_MEMBERS = frozenset({AUDIO})

# The columns of expression scores in controls.npz: MediaPipe's names, in its order; left and right are the person's own.
EXPRESSIONS = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft",
    "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft",
    "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft",
    "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight",
    "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight", "noseSneerLeft", "noseSneerRight"
)  # fmt: skip

INDEX_NAME = "index.parquet"
# Of pairs, what users choose samples by (stages.truth and others): -2 where A does too little to tell, null where nothing measures it.
SCORES = (
    *("pose_error_deg", "centre_offset", "size_ratio", "mouth_correlation", "eye_correlation"),
    *("pose_error_p95_deg", "mouth_error", "eye_error", "gaze_correlation", "gaze_error", "motion_correlation", "lag_frames"),
    *("jitter_ratio", "lost_frames", "valid_masks", "target_likeness", "csim_appearance", "csim_performer", "csim_margin"),
)
_LATER = frozenset(SCORES[5:])  # columns that an older run's index does not have
_MEMBER_OF_OLD = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("digest", pa.string())])
# `checksum` is what readers look at each time, `digest` what the bytes are known by. An older run's members have no checksum.
_MEMBER = pa.struct([*_MEMBER_OF_OLD, ("checksum", pa.uint64())])
INDEX_SCHEMA = pa.schema(
    [
        ("sample", pa.string()),  # = key = pair id
        ("split", pa.string()),
        ("tar", pa.string()),  # file name beside the index
        ("digest", pa.string()),  # of the sample: of its members' names and digests
        ("members", pa.list_(_MEMBER)),  # in tar order; offset of the data, not of the header
        ("frames", pa.int32()),
        ("fps", pa.int32()),
        ("size_px", pa.int32()),
        ("has_audio", pa.bool_()),
        ("clip", pa.string()),
        ("portrait", pa.string()),
        ("performer", pa.string()),
        ("appearance", pa.string()),
        *((name, pa.float32()) for name in SCORES),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SampleInfo:
    """KEY.json: the same typed keys in every sample, no nulls ("" and -1 stand for "not known")."""

    key: str
    clip: str
    portrait: str
    performer: str  # identity of the target
    appearance: str  # identity of the driving video
    split: str
    generation: int
    source_digest: str  # content of the file the target was cut from
    source_first_frame: int
    source_last_frame: int
    source_fps: float
    licence: str
    consent: str
    appearance_licence: str
    appearance_consent: str
    generator: str
    generator_version: int
    clip_fingerprint: str
    driving_fingerprint: str
    frames: int
    fps: int
    size_px: int
    has_audio: bool
    # Samples of versions before these keys lack them.
    appearance_digest: str = ""  # content of the file the portrait was cut from
    weights_digest: str = ""  # of all weights that drew the driving video; "" for an engine without
    config_fingerprint: str = ""  # of every setting, version and weight that the sample's bytes depend on
    crosspair_version: str = ""  # that rendered the driving video; "" where a version did it that did not say
    synthetic: bool = True  # the driving video and its regions; the target is footage
    format: str = FORMAT

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @staticmethod
    def decode(data: bytes) -> SampleInfo:
        """Raises ValueError for another major format, or for JSON that is no sample. Unknown keys are ignored: they may be added."""
        try:
            raw = json.loads(data)
            if raw["format"].split("/") != FORMAT.split("/"):
                raise ValueError(f"sample format is {raw['format']!r}, this reader knows {FORMAT!r}: use the version that wrote it")
            known = {f.name for f in fields(SampleInfo)}
            return SampleInfo(**{k: v for k, v in raw.items() if k in known})
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as e:
            raise ValueError(f"no crosspair sample: {e!r}") from e


def encode_controls(
    target_points: np.ndarray,
    driving_points: np.ndarray,
    target_pose: np.ndarray,
    driving_pose: np.ndarray,
    *,
    target_expressions: np.ndarray | None = None,
    driving_expressions: np.ndarray | None = None,
) -> bytes:
    """KEY.controls.npz: per frame of target and driving, mesh points (T, 478, 3) in px, kept to 1/32, and head poses (T, 4, 4).

    Points 468-472 and 473-477 are the irises of the person's right and left eye. A pose matrix M maps the canonical face to
    the picture: [x y z 1]^T = M [X Y Z 1]^T, in px. Expression scores (T, 52), 0..1, in the order of EXPRESSIONS, kept to 1/1024; where
    none were made the arrays are left out. NaN in any array marks a frame without a face.
    """
    points = {"target_points": target_points, "driving_points": driving_points}
    poses = {"target_pose": target_pose, "driving_pose": driving_pose}
    scores = {"target_expressions": target_expressions, "driving_expressions": driving_expressions}
    kept = [({k: v for k, v in scores.items() if v is not None}, 1024), (points, 32)]
    rounded = {k: np.rint(v * steps) / steps for arrays, steps in kept for k, v in arrays.items()}
    return encode_arrays({k: v.astype(np.float32) for k, v in {**rounded, **poses}.items()})


def decode_controls(data: bytes) -> dict[str, np.ndarray]:
    return decode_arrays(data, what=CONTROLS)


def decode_image(data: bytes) -> np.ndarray:
    """PNG bytes as uint8 RGB (H, W, 3). Raises ValueError when damaged."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise ValueError("not a readable PNG")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def sample_digest(members: Mapping[str, str]) -> str:
    """Digest of a sample from its members' {suffix: digest}."""
    return content_digest("\n".join(f"{k} {members[k]}" for k in sorted(members)).encode())


def tar_header(name: str, size: int) -> bytes:
    """A USTAR header that depends on name and size alone: no time, no owner."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) > tarfile.LENGTH_NAME or not 0 <= size < _MAX_OCTAL:
        return _tar_header(name, size)  # it knows what to do then, or that nothing can be done
    digits = b"%011o" % size
    return _HEADER % (encoded.ljust(100, b"\0"), digits, _BLANK_SUM + sum(encoded) + sum(digits))


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o444, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


# All that does not depend on name and size: readers make one for each member that they check. While it is summed up, the sum is blanks.
_BLANK = _tar_header("", 0)
_HEADER = b"%b" + _BLANK[100:124] + b"%b" + _BLANK[135:148] + b"%06o\0 " + _BLANK[156:]
_BLANK_SUM = sum(_BLANK[100:124]) + sum(_BLANK[135:148]) + sum(b" " * 8) + sum(_BLANK[156:])
_MAX_OCTAL = 8**11


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as a run's files hold it: with a checksum of every page."""
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="zstd", write_page_checksum=True)
    data: bytes = out.getvalue().to_pybytes()
    return data


def read_parquet(data: bytes, where: str, schema: pa.Schema | None, remedy: str) -> pa.Table:
    """The columns of `schema`, in its types, of a table's bytes, which may have more; all columns without it. Pages have checksums.

    Raises:
        ValueError: damage, or another table; names `where` and the `remedy`.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        # Read at once, nested columns must not have more than 2 GiB of text: the digests of 15 million samples.
        parts = [file.read_row_group(k) for k in range(file.num_row_groups)]
        table = pa.concat_tables(parts) if parts else file.schema_arrow.empty_table()
        table.validate(full=True)  # text that is none would end in an error without a name
        missing = sorted(set(schema.names) - set(table.column_names)) if schema else []
        if schema and not missing:
            metadata = table.schema.metadata
            table = table.select(schema.names).cast(schema.with_metadata(metadata) if metadata else schema)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as e:
        raise ValueError(f"{where}: a damaged table; {remedy}: {str(e).splitlines()[0]}") from e
    if missing:
        raise ValueError(f"{where}: another table, or a damaged one: columns {missing} are missing; {remedy}")
    return table


def known_columns(data: bytes, schema: pa.Schema, later: Collection[str], older: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """`schema` as an older run's table has it: without those `later` columns that its bytes do not have, and with those columns of `older`
    types that they have of them. The whole one for damaged bytes."""
    with suppress(OSError, pa.ArrowException):
        there = {f.name: f.type for f in pq.read_schema(pa.BufferReader(data))}
        types = {name: kind for name, kind in (older or {}).items() if there.get(name) == kind}
        return pa.schema([f.with_type(types.get(f.name, f.type)) for f in schema if f.name in there or f.name not in later])
    return schema


def read_index(folder: Place) -> pa.Table:
    """The index of a pair set's folder, with those of our columns that its run knew; nulls are among scores and checksums alone.

    Raises:
        ValueError: no index, or a damaged one.
    """
    store = open_store(folder)
    where, remedy = store.at(INDEX_NAME), "put back a copy of it, or take it away and run again: the tars are written anew"
    try:
        data = store.read(INDEX_NAME)
    except FileNotFoundError as e:
        raise ValueError(f"{where}: no index; is {store} a pair set's folder (RUN/shards/SET), and has the run got as far as pack?") from e
    index = read_parquet(data, where, known_columns(data, INDEX_SCHEMA, _LATER, {"members": pa.list_(_MEMBER_OF_OLD)}), remedy)
    members = pc.list_flatten(index["members"])
    columns = {name: index[name] for name in index.column_names if name not in SCORES}
    columns |= {f"members.{field.name}": pc.struct_field(members, field.name) for field in _MEMBER_OF_OLD}
    if empty := [name for name, column in columns.items() if column.null_count]:
        raise ValueError(f"{where}: a damaged table: {empty} have no value in some rows; {remedy}")
    return index


def read_members(folder: Place, row: Mapping, names: tuple[str, ...]) -> dict[str, bytes]:
    """Bytes of the named members of one index row, by ranged reads. Members that the sample does not have are left out.

    Raises:
        ValueError: the tar is gone or ends early, or a member does not have its digest; names tar and member. One that was replaced since
            the index was read, as a sample of it was withdrawn, is told from one that was lost.
    """
    store = open_store(folder)
    path, wanted = store.at(row["tar"]), [m for m in row["members"] if m["name"] in names]
    try:
        parts = store.read_ranges(row["tar"], [(m["offset"], m["size"]) for m in wanted])
    except StorageError:
        raise
    except OSError as e:
        raise ValueError(why_unreadable(store, row["tar"], e)) from e
    found = {m["name"]: data for m, data in zip(wanted, parts, strict=True)}
    for member in wanted:
        if content_digest(found[member["name"]]) != member["digest"]:
            raise ValueError(f"{path}: {row['sample']}.{member['name']} does not have its digest; `crosspair verify` says what is damaged")
    return found


def why_unreadable(folder: Store, tar: str, error: OSError) -> str:
    """What to tell of a tar that cannot be read; one that was replaced since its index was read is told from one that was lost."""
    if isinstance(error, FileNotFoundError) and _was_replaced(folder, tar):
        return (
            f"{folder.at(tar)}: taken away since its index was read: a sample of it was withdrawn (`crosspair forget`) or replaced; "
            f"read {INDEX_NAME} again, it names the tars that are there now"
        )
    return f"{folder.at(tar)}: cannot be read: {error.strerror or error}; `crosspair verify` says what is damaged"


def _was_replaced(folder: Store, tar: str) -> bool:
    """Whether the index by now names no such tar."""
    try:
        return tar not in pc.unique(read_index(folder)["tar"]).to_pylist()
    except ValueError:
        return False


def index_row(info: SampleInfo, tar: str, entries: list[dict], scores: Mapping[str, float | None]) -> dict:
    """A sample's row of the index; `entries` are those that `write_tar_sample` returned."""
    fields = {n: getattr(info, n) for n in INDEX_SCHEMA.names if hasattr(info, n)}
    whole = sample_digest({e["name"]: e["digest"] for e in entries})
    return {"sample": info.key, "tar": tar, "digest": whole, "members": entries, **fields, **{n: scores.get(n) for n in SCORES}}


def write_tar_sample(out: BinaryIO, key: str, members: Mapping[str, bytes]) -> list[dict]:
    """Appends one sample to an open tar; returns the index's `members` entries."""
    entries = []
    for name in MEMBERS:
        if name not in members:
            continue
        data = members[name]
        offset = write_tar_member(out, f"{key}.{name}", data)
        entries.append({"name": name, "offset": offset, "size": len(data), "digest": content_digest(data), "checksum": checksum(data)})
    return entries


def write_tar_member(out: BinaryIO, name: str, data: bytes) -> int:
    """Appends one file to an open tar; the offset of its data."""
    out.write(tar_header(name, len(data)))
    offset = out.tell()
    out.write(data)
    out.write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))
    return offset


def tar_frame(members: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int, bytes]]:
    """All that a tar holds beside the bytes of its members, given by name and size in their order: what it is, its offset, its bytes."""
    at = 0
    for name, size in members:
        yield f"the header of {name}", at, tar_header(name, size)
        at += tarfile.BLOCKSIZE + size
        padding = -size % tarfile.BLOCKSIZE
        yield f"the padding behind {name}", at, b"\0" * padding
        at += padding
    end = at + 2 * tarfile.BLOCKSIZE
    yield "the end", at, b"\0" * (end - at + -end % tarfile.RECORDSIZE)


def finish_tar(out: BinaryIO) -> None:
    """Two empty blocks and padding to a whole record, as tar(1) wants it."""
    out.write(b"\0" * (2 * tarfile.BLOCKSIZE))
    out.write(b"\0" * (-out.tell() % tarfile.RECORDSIZE))
