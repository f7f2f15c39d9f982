"""Configs: typed, and a slip of the pen is told where it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from schemas.config import load_config, parse_config


@dataclass(frozen=True)
class Inner:
    size_px: int = 576
    fps: float = 25.0


@dataclass(frozen=True)
class Config:
    run: str
    video: Inner = field(default_factory=Inner)
    clips: str | list[str] = ""
    splits: dict[str, float] = field(default_factory=dict)


def test_defaults_fill_what_is_left_out() -> None:
    assert parse_config(Config, {"run": "r", "video": {"fps": 30}}) == Config("r", Inner(fps=30.0))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"run": "r", "vidoe": {}}, "unknown key 'vidoe'; did you mean 'video'"),
        ({"run": "r", "video": {"size": 1}}, "unknown key 'video.size'; did you mean 'video.size_px'"),
        ({"run": "r", "zzz": 1}, "known here: run, video, clips, splits"),
        ({"run": "r", 5: 1}, "unknown key '5'"),
        ({"run": "r", "video": {"fps": "fast"}}, "video.fps"),
        ({"run": "r", "video": {"size_px": 10.5}}, "video.size_px"),
        ({"run": "r", "video": [1]}, "video"),
        ({"run": "r", "video": None}, "video"),
        ({"video": {}}, "run"),
        ({"run": ["r"]}, "run"),
        (["run"], "must be a mapping"),
    ],
)
def test_a_mistake_is_named(data: object, says: str) -> None:
    with pytest.raises(ValueError, match="where: ") as e:
        parse_config(Config, data, where="where")
    assert says in str(e.value)


def test_set_overrides_one_value_and_makes_sections() -> None:
    config = parse_config(Config, {"run": "r"}, ["video.size_px=64", "splits.train=0.9", "clips=[a, b]", "run=x=y"])
    assert config == Config("x=y", Inner(64), ["a", "b"], {"train": 0.9})


def test_set_leaves_the_mapping_alone() -> None:
    data = {"run": "r", "video": {"fps": 1}}
    parse_config(Config, data, ["video.fps=2"])
    assert data == {"run": "r", "video": {"fps": 1}}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run", "--set run: must look like"),
        ("=1", "must look like"),
        ("run.deeper=1", "run is a value"),
        ("video.fsp=1", "did you mean 'video.fps'"),
        ("clips=[a", "--set clips="),
    ],
)
def test_a_wrong_override_is_a_value_error(override: str, says: str) -> None:
    with pytest.raises(ValueError) as e:
        parse_config(Config, {"run": "r"}, [override])
    assert says in str(e.value)


def test_a_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("run: r\nvideo: {fps: 12}\n")
    assert load_config(Config, path).video.fps == 12
    path.write_text("run: [")
    with pytest.raises(ValueError, match=r"a\.yaml"):
        load_config(Config, path)
    path.write_text("")
    with pytest.raises(ValueError, match="run"):
        load_config(Config, path)
    with pytest.raises(ValueError, match=r"none\.yaml"):
        load_config(Config, tmp_path / "none.yaml")


def test_a_config_cannot_build_objects(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="YAML"):
        load_config(Config, tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"video": {"size_px": 100}}, "multiple of 16"),
        ({"video": {"fps": 0}}, "at least 1"),
        ({"splits": {"train": 0.5}}, "sum to 1"),
        ({"splits": {"a/b": 1.0}}, "letters"),
        ({"gates": {"min_face": 3}}, "gates.min_face_px"),
        ({"reenactor": {"engine": "none"}}, "engine"),
        ({"limits": {"attempts": 0}}, "limits.attempts"),
        ({"limits": {"unit_s": 0}}, "limits.unit_s"),
        ({"faces": {"survey_every": 0}}, "faces.survey_every"),
        ({"shards": {"name": "../elsewhere"}}, "shards.name"),
    ],
)
def test_a_run_that_cannot_work_is_refused(more: dict, says: str) -> None:
    with pytest.raises(ValueError) as e:
        parse_config(RunConfig, {"run": "r", "clips": "c", **more})
    assert says in str(e.value)
