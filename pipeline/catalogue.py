"""The catalogue of weights: which public files there are, where they belong in a models folder, their digests and their licences.

Digests and sizes are those that public download lists give, which copy them from the hosts' metadata. A digest in the catalogue proves
that a file is what was published. Another digest proves nothing: another export, one's own weights, or a damaged download.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.ids import sha256_of

Layout = Literal["official", "onnx", "optional", "refused", "unused"]

MIT = "MIT"
NON_COMMERCIAL = "non-commercial research only"
SUMS = "SHA256SUMS"


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One file that people have.

    Attributes:
        layout: official and onnx are the two ways to bring LivePortrait, optional serves both; refused and unused files are known, too.
        file: under the layout's folder (see FOLDERS), slashes between.
        size_bytes, digests: of what was published, sha256 in hexadecimal; None and empty where we know none.
        advice: for files that no run uses: why, and what to take instead.
    """

    role: str
    layout: Layout
    file: str
    what: str
    licence: str
    origin: str
    size_bytes: int | None = None
    digests: tuple[str, ...] = ()
    advice: str = ""

    @property
    def name(self) -> str:
        return self.file.rsplit("/", 1)[-1]


# where a layout's files may lie under the folder that the user names: there, or as the whole release is laid out
FOLDERS: dict[Layout, tuple[str, ...]] = {
    "official": ("", "liveportrait"),
    "onnx": ("", "liveportrait_onnx"),
    "optional": ("", "liveportrait", "liveportrait_onnx"),
    "refused": ("", "liveportrait_onnx"),
    "unused": ("", "liveportrait_onnx", "insightface/models/buffalo_l", "models/buffalo_l", "buffalo_l"),
}

NETWORKS = ("appearance", "motion", "warping_spade", "stitching")  # what a run needs; eye and lip serve retargeting
_KWAI = "KwaiVGI's LivePortrait on Hugging Face"
_FASTER = "warmshao's FasterLivePortrait on Hugging Face, or `crosspair models export`"
_BUFFALO = "InsightFace's model pack buffalo_l"
_FINDS_FACES = "not needed for LivePortrait; a run finds faces with it if its config says `faces: {engine: insightface, pack: FOLDER}`"
_WHO_IS_WHO = "not needed for LivePortrait; a run tells people apart with it if its config says `identity: {model: FILE}`"
_MESH_INSTEAD = "not needed: the face mesh's 478 points take its place; delete it unless something else uses it"


def _official(role: str, file: str, what: str, size_bytes: int, digest: str) -> Weight:
    return Weight(role=role, layout="official", file=file, what=what, licence=MIT, origin=_KWAI, size_bytes=size_bytes, digests=(digest,))


def _graph(role: str, file: str, what: str, size_bytes: int | None, *digests: str) -> Weight:
    return Weight(role=role, layout="onnx", file=file, what=what, licence=MIT, origin=_FASTER, size_bytes=size_bytes, digests=digests)


def _insightface(role: str, file: str, what: str, size_bytes: int | None = None, *digests: str, advice: str = _MESH_INSTEAD) -> Weight:
    return Weight(
        role=role, layout="unused", file=file, what=what, licence=NON_COMMERCIAL, origin=_BUFFALO,
        size_bytes=size_bytes, digests=digests, advice=advice,
    )  # fmt: skip


# Of the graphs, first the digest of the release on Hugging Face, then that of the copies which VisoMaster and Rope mirror.
CATALOGUE: tuple[Weight, ...] = (
    _official("appearance", "base_models/appearance_feature_extractor.pth", "F: a portrait to a volume of features",
              3_387_959, "5279bb8654293dbdf327030b397f107237dd9212fb11dd75b83dfb635211ceb5"),
    _official("motion", "base_models/motion_extractor.pth", "M: a frame to head pose, expression and keypoints",
              112_545_506, "251e6a94ad667a1d0c69526d292677165110ef7f0cf0f6d199f0e414e8aa0ca5"),
    _official("warping", "base_models/warping_module.pth", "W: the volume warped from keypoints to keypoints",
              182_180_086, "2f61a6f265fe344f14132364859a78bdbbc2068577170693da57fb96d636e282"),
    _official("generator", "base_models/spade_generator.pth", "G: the warped volume to a picture",
              221_813_590, "4780afc7909a9f84e24c01d73b31a555ef651521a1fe3b2429bd04534d992aee"),
    _official("retargeting", "retargeting_models/stitching_retargeting_module.pth", "three MLPs over keypoints: stitching, eyes, lips",
              2_393_098, "3652d5a3f95099141a56986aaddec92fadf0a73c87a20fac9a2c07c32b28b611"),
    _graph("appearance", "appearance_feature_extractor.onnx", "F: a portrait to a volume of features", 3_355_896,
           "d070afccca7f528ffb0ef5052b21588b42225a996661833f7bdede562d1ab921",
           "dbbbb44e4bba12302d7137bdee6a0f249b45fb6dd879509fd5baa27d70c40e32"),
    _graph("motion", "motion_extractor.onnx", "M: a frame to head pose, expression and keypoints", 112_648_514,
           "219a46174297b2b411bb3c5dce48d3a8c8e07a9d82120a0da21f49f58b67fca6",
           "99d4b3c9dd3fd301910de9415a29560e38c0afaa702da51398281376cc36fdd3"),
    _graph("warping_spade", "warping_spade.onnx", "W and G: volume and keypoints to a picture", 421_233_096,
           "b0e7a566db8fba690c23523bcd2faa4f0d13f05418db84a779397a851062ad69",
           "d6ee9af4352b47e88e0521eba6b774c48204afddc8d91c671a5f7b8a0dfb4971"),
    _graph("stitching", "stitching.onnx", "the MLP that keeps the shoulders in place", 182_363,
           "8e33658425e3f1014dc35b28f60ca7459189e8f78f20540262a2fe5ac1dc6ec7",
           "43598e9747a19f4c55d8e1604fb7d7fa70ab22377d129cb7d1fe38c9a737cc79"),
    _graph("eye", "stitching_eye.onnx", "the MLP that opens and closes eyes", 580_926,
           "b9a2086c4d757c9be71b9b290d020678406da6a33c6247252c4bb0aeeff48afc",
           "251004fe4a994c57c8cd9f2c50f3d89feb289fb42e6bc3af74470a3a9fa7d83b"),
    _graph("lip", "stitching_lip.onnx", "the MLP that closes lips", None,
           "1ca793eac4b0dc5464f1716cdaa62e595c2c2272c9971a444e39c164578dc34b"),
    Weight(role="landmark", layout="optional", file="landmark.onnx", what="203 points of a face", licence=MIT, origin=_KWAI,
           size_bytes=114_666_491, digests=("31d22a5041326c31f19b78886939a634a5aedcaa5ab8b9b951a1167595d147db",)),
    Weight(role="warping_spade", layout="refused", file="warping_spade-fix.onnx", what="W and G for TensorRT only", licence=MIT,
           origin=_FASTER, digests=("a6164debbf1e851c3dcefa622111c42a78afd9bb8f1540e7d01172ddf642c3b5",),
           advice="its operator GridSample3D exists only in a TensorRT plugin; take warping_spade.onnx of the same release"),
    _insightface("detector", "det_10g.onnx", "InsightFace's face detector", 16_923_827,
                 "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91", advice=_FINDS_FACES),
    _insightface("landmark106", "2d106det.onnx", "InsightFace's 106 points of a face", 5_030_888,
                 "f001b856447c413801ef5c42091ed0cd516fcd21f2d6b79635b1e733a7109dbf"),
    _insightface("identity", "w600k_r50.onnx", "InsightFace's identity network", 174_383_860,
                 "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43", advice=_WHO_IS_WHO),
    _insightface("landmark68", "1k3d68.onnx", "InsightFace's 68 points of a face", 143_607_619,
                 "df5c06b8a0c12e422b2ed8947b8869faa4105387f199c477af038aa01f9a45cc"),
    _insightface("genderage", "genderage.onnx", "InsightFace's guess of gender and age", 1_322_532,
                 "4fde69b1c810857b88c64a335084f1c3fe8f01246c9a191b48c7bb756d6652fb"),
    _insightface("detector", "retinaface_det_static.onnx", "det_10g, as FasterLivePortrait has it"),
    _insightface("landmark106", "face_2dpose_106_static.onnx", "2d106det, as FasterLivePortrait has it"),
)  # fmt: skip

# folders and patterns that hold weights of which no run can make use, and why
OTHERS: dict[str, str] = {
    "liveportrait_animals": "LivePortrait for animals: people are another model, and its X-Pose is for non-commercial research only; "
    "take the folder liveportrait of the same release",
    "liveportrait_animal_onnx": "LivePortrait for animals: take the folder liveportrait_onnx of the same release",
    "liveportrait_animal_onnx_v1.1": "LivePortrait for animals: take the folder liveportrait_onnx of the same release",
    "xpose.pth": "X-Pose, keypoints of animals, for non-commercial research only; no run uses it",
    "*-v1.1.onnx": "LivePortrait for animals: take the files of the folder liveportrait_onnx of the same release",
    "live_portrait_*.onnx": "facefusion's export: its graphs have other inputs; take FasterLivePortrait's, or the official .pth files",
    "*.safetensors": "a conversion of the weights that is not read; take the official .pth files",
}


def of_layout(layout: Layout) -> dict[str, Weight]:
    """By role."""
    return {w.role: w for w in CATALOGUE if w.layout == layout}


def published(digest: str) -> Weight | None:
    """The file that was published with this sha256."""
    return next((w for w in CATALOGUE if digest in w.digests), None)


def forbid_non_commercial(used: Iterable[Path]) -> None:
    """For runs that must not use weights with such a licence: `used` are the files that a run would open.

    A file is known by what it holds, under any name, or else by its name: who published a file of that name published it so.

    Raises:
        ValueError: the first file whose licence is for non-commercial use, with what to do.
    """
    for path in used:
        weight = published(sha256_of(path))
        known = weight is not None
        weight = weight or next((w for w in CATALOGUE if w.name == path.name), None)
        if weight is None or weight.licence != NON_COMMERCIAL:
            continue
        why = f"its content is {weight.what} ({weight.name})" if known else f"as published under this name: {weight.what}"
        raise ValueError(
            f"{path}: licensed for {weight.licence}, {why}; weights.allow_non_commercial is false. "
            f"Take an engine that needs no such file (faces.engine mediapipe, no identity.model), or, for research only, set it to true"
        )
