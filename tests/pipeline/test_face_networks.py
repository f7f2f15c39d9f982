"""The networks that look at faces are the user's, checked before the run begins, pinned by their digests, and named by what they change."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from faceclips import moving_face, photograph, write_clip
from PIL import Image
from smallworld import Silent
from tinynet import box_network, tiny_network

from pipeline.config import RunConfig, fingerprints
from pipeline.face_networks import with_face_networks
from pipeline.run import foresee_run, run
from schemas.config import parse_config
from schemas.ids import sha256_of, source_id
from schemas.outcomes import Rejection
from schemas.store import DiskStore
from schemas.units import SourceFile
from stages.faces import Faces, FacesConfig
from stages.ingest import Ingest, IngestConfig
from stages.outputs import Outputs
from stages.portraits import Portraits

FACE = (190.0, 190.0, 450.0, 450.0)  # of 640: the face of `moving_face`


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    (tmp_path / "pack").mkdir()
    box_network(tmp_path / "pack" / "det_10g.onnx", FACE)
    return tmp_path / "pack"


def config(**sections: object) -> RunConfig:
    return parse_config(RunConfig, {"run": "run", "clips": "clips", **sections})


def test_a_pack_is_taken_with_its_digest_and_its_identity_network(pack: Path) -> None:
    plain = config(faces={"engine": "insightface", "pack": "pack"})
    taken = with_face_networks(plain, pack.parent)
    assert (taken.faces.pack, taken.faces.digest) == (str(pack), sha256_of(pack / "det_10g.onnx"))
    assert taken.identity.model == ""
    arcface = tiny_network(pack / "w600k_r50.onnx")
    assert with_face_networks(plain, pack.parent).identity.model == str(arcface)
    own = tiny_network(pack.parent / "own.onnx", seed=1)
    named = config(faces={"engine": "insightface", "pack": "pack"}, identity={"model": "own.onnx", "normalise": "imagenet"})
    identity = with_face_networks(named, pack.parent).identity
    assert (identity.model, identity.digest, identity.normalise) == (str(own), sha256_of(own), "imagenet")


def test_a_pack_that_has_lost_the_identity_network_of_the_run_stops_it(pack: Path) -> None:
    """Else everybody would be unlinked without a word. Unless the config says so, or the network was never the pack's."""
    plain = config(faces={"engine": "insightface", "pack": "pack"})
    arcface = tiny_network(pack / "w600k_r50.onnx")
    began = asdict(with_face_networks(plain, pack.parent))
    aside = config(faces={"engine": "insightface", "pack": "pack"}, identity={"from_pack": False})
    assert with_face_networks(aside, pack.parent, began).identity.model == ""
    arcface.rename(pack.parent / "own.onnx")
    with pytest.raises(ValueError, match=r"w600k_r50\.onnx is not there, and the run began with it; put it back\. Else .*from_pack: false"):
        with_face_networks(plain, pack.parent, began)
    elsewhere = config(faces={"engine": "insightface", "pack": "moved"})
    shutil.copytree(pack, pack.parent / "moved")
    with pytest.raises(ValueError, match=r"moved/w600k_r50\.onnx is not there, and the run began with it"):
        with_face_networks(elsewhere, pack.parent, began)
    assert with_face_networks(aside, pack.parent, began).identity.model == ""
    assert with_face_networks(plain, pack.parent, asdict(plain)).identity.model == ""
    named = config(faces={"engine": "insightface", "pack": "pack"}, identity={"model": "own.onnx"})
    assert with_face_networks(plain, pack.parent, asdict(with_face_networks(named, pack.parent))).identity.model == ""


def test_a_run_says_that_the_packs_identity_network_is_gone_and_goes_on_when_told(pack: Path) -> None:
    base, watcher = pack.parent, Silent()
    Image.fromarray(photograph("hopper")).save(base / "a.png")
    settings = {"faces": {"engine": "insightface", "pack": "pack"}, "clips": [], "portraits": ["a.png"], "ray": {"workers": 1}}
    tiny_network(pack / "w600k_r50.onnx")
    foresee_run(config(**settings), base=base, watcher=watcher)
    (base / "run").mkdir()
    run_file = {"config": asdict(with_face_networks(config(**settings), base)), "fingerprints": fingerprints(config(**settings))}
    (base / "run/run.yaml").write_text(yaml.safe_dump(run_file))
    (pack / "w600k_r50.onnx").unlink()
    for go in (foresee_run, run):
        with pytest.raises(ValueError, match=r"w600k_r50\.onnx is not there"):
            go(config(**settings), base=base, watcher=watcher)
    assert yaml.safe_load((base / "run/run.yaml").read_text()) == run_file and watcher.said == []
    foresee_run(config(**settings, identity={"from_pack": False}), base=base, watcher=watcher)
    assert [s for s in watcher.said if s.startswith(f"identity.model {pack / 'w600k_r50.onnx'} -> none: who is who says the manifest")]


def test_the_fingerprint_knows_the_detectors_content_and_not_its_place(pack: Path) -> None:
    taken = with_face_networks(config(faces={"engine": "insightface", "pack": "pack"}), pack.parent)
    moved = replace(taken, faces=replace(taken.faces, pack="/elsewhere"))
    other = replace(taken, faces=replace(taken.faces, digest="0" * 64))
    assert fingerprints(moved) == fingerprints(taken)
    for stage in ("faces", "portraits", "identity", "motion"):
        assert fingerprints(other)[stage] != fingerprints(taken)[stage]
    assert fingerprints(other)["ingest"] == fingerprints(taken)["ingest"]


def test_what_cannot_serve_says_what_to_do(pack: Path) -> None:
    with pytest.raises(ValueError, match=r"faces\.pack: the engine insightface needs a folder with det_10g\.onnx"):
        config(faces={"engine": "insightface"})
    with pytest.raises(ValueError, match=r"nowhere/det_10g\.onnx is not there; bring your own copy"):
        with_face_networks(config(faces={"engine": "insightface", "pack": "nowhere"}), pack.parent)
    with pytest.raises(ValueError, match=r"det_10g\.onnx: faces\.digest pins it to 00"):
        with_face_networks(config(faces={"engine": "insightface", "pack": "pack", "digest": "00"}), pack.parent)
    with pytest.raises(ValueError, match=r"licensed for non-commercial .* weights\.allow_non_commercial is false"):
        with_face_networks(config(faces={"engine": "insightface", "pack": "pack"}, weights={"allow_non_commercial": False}), pack.parent)
    tiny_network(pack / "det_10g.onnx")
    with pytest.raises(ValueError, match=r"det_10g\.onnx: (another network|cannot serve as face detector)"):
        with_face_networks(config(faces={"engine": "insightface", "pack": "pack"}), pack.parent)


def source(path: Path) -> SourceFile:
    return SourceFile(id=source_id(str(path)), uri=str(path), identity="i", licence="", consent="")


def test_clips_and_portraits_are_found_where_the_packs_detector_sees_them(pack: Path, tmp_path: Path) -> None:
    """And nowhere else: with its face laid into a corner, there is none."""
    clip = source(write_clip(tmp_path / "a.mp4", moving_face("hopper", 32)))
    Image.fromarray(photograph("hopper")).save(tmp_path / "a.png")
    (shot,) = Ingest(IngestConfig())(clip, Outputs(DiskStore(tmp_path), "ingest"))[1]
    settings = FacesConfig(engine="insightface", pack=str(pack), digest=sha256_of(pack / "det_10g.onnx"))
    (found,) = Faces(settings, 25, 128)(shot, Outputs(DiskStore(tmp_path), "faces"))[1]
    assert found.frames == 32
    box_network(pack / "det_10g.onnx", (0.0, 0.0, 40.0, 40.0))
    with pytest.raises(ValueError, match=r"det_10g\.onnx: sha256 is .*; the run began with"):
        Portraits(settings, 128)
    aside = replace(settings, digest=sha256_of(pack / "det_10g.onnx"))
    for look in (
        lambda: Faces(aside, 25, 128)(shot, Outputs(DiskStore(tmp_path), "again")),
        lambda: Portraits(aside, 128)(source(tmp_path / "a.png"), Outputs(DiskStore(tmp_path), "portraits")),
    ):
        with pytest.raises(Rejection) as e:
            look()
        assert e.value.reason == "no_face"
