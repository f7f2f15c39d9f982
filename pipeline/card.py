"""The dataset card: a README.md whose header lets `datasets.load_dataset(FOLDER)` read a pair set without torchcodec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

import yaml

from schemas.regions import REGIONS
from schemas.sample import FORMAT, SampleInfo

_JSON_TYPES = {"str": "string", "int": "int64", "float": "float64", "bool": "bool"}


def dataset_card(name: str, rows: Sequence[dict], *, expressions: bool = False) -> str:
    """`rows` are the index's. The header depends on the format, the splits, and which optional parts the samples have."""
    splits = sorted({r["split"] for r in rows})
    features = _features(with_audio=any(r["has_audio"] for r in rows), expressions=expressions)
    head = {
        "configs": [{"config_name": "default", "data_files": [{"split": s, "path": f"{s}-*.tar"} for s in splits]}],
        "dataset_info": {"config_name": "default", "features": features},
        "tags": ["portrait-animation", "cross-identity", "synthetic", "webdataset"],
    }
    counts = Counter(r["split"] for r in rows)
    lines = "\n".join(f"| {s} | {counts[s]} | {sum(r['frames'] for r in rows if r['split'] == s)} |" for s in splits)
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---
# {name}: cross-identity portrait pairs

Format `{FORMAT}`, written by crosspair. Each sample holds a real clip of a performer (`target.mp4`), a still of the same person
(`source.png`) and a **synthetic** video of another person making the same motion (`driving.mp4`), frame for frame, with outlines of
{", ".join(REGIONS)} (`regions.npz`). `json` names identities, licence and consent of both people.

| split | samples | frames |
|---|---|---|
{lines}
"""


def _features(*, with_audio: bool, expressions: bool) -> list[dict]:
    binary = [{"name": n, "dtype": "binary"} for n in ("driving.mp4", "target.mp4")]
    depths = {"points": 3, "pose": 3} | ({"expressions": 2} if expressions else {})
    controls = [{"name": f"{who}_{n}", **_nested("float32", depth)} for who in ("driving", "target") for n, depth in depths.items()]
    outlines = [{"name": "outlines", **_nested("float32", 4)}, {"name": "valid", **_nested("bool", 2)}]
    arrays = [{"name": "controls.npz", "struct": controls}, {"name": "regions.npz", "struct": outlines}]  # `datasets` unpacks .npz
    audio = [{"name": "audio.flac", "dtype": "binary"}] if with_audio else []
    info = [{"name": f.name, "dtype": _JSON_TYPES[str(f.type)]} for f in fields(SampleInfo)]
    image = [{"name": "source.png", "dtype": "image"}]
    keys = [{"name": "__key__", "dtype": "string"}, {"name": "__url__", "dtype": "string"}]
    return [*binary, *arrays, *audio, *image, {"name": "json", "struct": info}, *keys]


def _nested(dtype: str, depth: int) -> dict:
    """A feature: lists of lists, `depth` deep."""
    inner: str | dict = dtype
    for _ in range(depth):
        inner = {"list": inner}
    assert isinstance(inner, dict)
    return inner
