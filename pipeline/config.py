"""A run's config: everything that a user may set, with its default. Sections are the stages' own configs where there are any."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from schemas.ids import digest, fingerprint
from stages.faces import Faces, FacesConfig
from stages.gates import FaceGates
from stages.identity import IdentityConfig
from stages.ingest import Ingest, IngestConfig
from stages.lineage import LineageConfig
from stages.liveportrait_settings import MOTION_WEIGHTS, VERSION, LivePortraitConfig
from stages.meshwarp import MeshWarp, MeshWarpConfig
from stages.portraits import Portraits
from stages.quality import QualityGates
from stages.regions import RegionsStage


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    fps: int = 25
    size_px: int = 576  # side of the square crop; a multiple of 16, so that latents and patches come out even


@dataclass(frozen=True, kw_only=True)
class ReenactorConfig:
    engine: Literal["meshwarp", "liveportrait"] = "meshwarp"
    models: str = ""  # folder with liveportrait's weights; `crosspair models check` says what belongs there
    landmarks: str = ""  # LivePortrait's landmark.onnx, for the crops; by default the one in `models`, else the face mesh serves
    digests: dict[str, str] = field(default_factory=dict)  # role -> sha256: pins; the run fills in those of the files that it uses
    files: dict[str, str] = field(default_factory=dict)  # the run fills in: file -> sha256; a worker opens no others
    allow_untrained: bool = False  # ship whatever the networks draw: for trying the machinery with weights that are not trained
    meshwarp: MeshWarpConfig = field(default_factory=MeshWarpConfig)
    liveportrait: LivePortraitConfig = field(default_factory=LivePortraitConfig)


@dataclass(frozen=True, kw_only=True)
class ControlsConfig:
    expressions: str = ""  # MediaPipe's face_landmarker_v2_with_blendshapes.task adds expression scores to controls.npz; "" leaves them out
    sha256: str = ""  # of that file: a pin; the run fills it in, and a worker opens no other


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Who may appear for whom, and how often. Counts for generations to come; pairs that are planned stay."""

    per_clip: int = 2  # people who appear for a clip; a clip that went short is topped up when there is somebody
    per_identity: int = 0  # pairs in which one person appears, at most; 0: no limit
    per_performer: int = 0  # pairs in which one person performs, at most; 0: no limit
    both_directions: bool = False  # whoever appears is sought to perform for his performer, before others who appear less
    seed: int = 0
    max_yaw_difference_deg: float = 30.0  # between the clip's median and the portrait; engines lose a head that turns by more
    max_pitch_difference_deg: float = 25.0
    max_face_size_ratio: float = 0.0  # of the clip's face to the portrait's, in px of their sources, the larger to the smaller; 0: any
    portraits_per_identity: int = 8  # the best of them may appear (stages.gates.still_quality; images before stills of clips); 0: all
    # Cosine between two people, where a network tells: people who are too like, or too unlike, are not paired. -1 and 1: any
    min_similarity: float = -1.0
    max_similarity: float = 1.0

    def __post_init__(self) -> None:
        if self.per_clip < 1 or min(self.per_identity, self.per_performer, self.portraits_per_identity) < 0:
            below = "pairs.per_identity, per_performer and portraits_per_identity must not be below 0"
            raise ValueError(f"pairs.per_clip must be at least 1; {below} (0: no limit)")
        if min(self.max_yaw_difference_deg, self.max_pitch_difference_deg) < 0:
            raise ValueError("pairs.max_yaw_difference_deg and max_pitch_difference_deg must not be below 0")
        if self.max_face_size_ratio and self.max_face_size_ratio < 1:
            raise ValueError(f"pairs.max_face_size_ratio is {self.max_face_size_ratio}; of larger to smaller it is 1 or more, or 0 for any")
        if not -1 <= self.min_similarity <= self.max_similarity <= 1:
            raise ValueError("pairs.min_similarity and max_similarity are cosines, -1..1, the first not above the second")

    @property
    def asks_for_similarity(self) -> bool:
        return self.min_similarity > -1 or self.max_similarity < 1


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    max_mb: int = 512
    name: str = ""  # of the pair set; by default the engine's


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    address: str | None = None  # null: a Ray of our own on this machine, stopped at the end
    # All stages of a step at once, or one after the other; auto: at once, unless there are fewer GPUs than stages that run on one.
    # local: no Ray, but one unit after the other in this process: for a few clips, and for debuggers. There a unit that kills or hangs
    # its process ends the command.
    mode: Literal["auto", "streaming", "staged", "local"] = "auto"
    workers: int = 0  # per stage; 0: one per CPU
    workers_per_gpu: int = 2  # of a stage that runs on GPUs: two keep one busy while frames are encoded

    def __post_init__(self) -> None:
        if self.mode == "local" and (self.address is not None or self.workers):
            raise ValueError("ray.mode local has no workers and no cluster: leave ray.workers and ray.address out, or choose another mode")


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    unit_s: float = 900.0  # a unit that takes longer is stopped, native code included
    attempts: int = 2  # before an error is final; and, alone, before a unit that kills its worker is quarantined
    transient_attempts: int = 5  # the same for an error of the machine or its network, with growing pauses between
    memory_gb: float = 0.0  # that a unit may take beyond what its worker has; 0: half of the machine's


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    allow_non_commercial: bool = True  # False: a run that would use weights licensed for research only stops before it starts


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    run: str  # the run's folder
    clips: str | list[str]  # globs, folders, or manifests (CSV, JSONL, Parquet) with a column `uri`
    portraits: str | list[str] = field(default_factory=list)  # likewise; stills of the clips themselves serve too
    portraits_from_clips: bool = True
    lineage: LineageConfig = field(default_factory=LineageConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    faces: FacesConfig = field(default_factory=FacesConfig)
    gates: FaceGates = field(default_factory=FaceGates)
    portrait_gates: FaceGates = field(default_factory=lambda: FaceGates(max_yaw_deg=30.0, max_pitch_deg=25.0, max_roll_deg=30.0))
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    reenactor: ReenactorConfig = field(default_factory=ReenactorConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    splits: dict[str, float] = field(default_factory=lambda: {"train": 1.0})
    quality: QualityGates = field(default_factory=QualityGates)
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)

    def __post_init__(self) -> None:
        if self.video.size_px % 16 or self.video.size_px < 64:
            raise ValueError(f"video.size_px is {self.video.size_px}; it must be a multiple of 16, at least 64")
        if self.video.fps < 1 or self.shards.max_mb < 1:
            raise ValueError("video.fps and shards.max_mb must be at least 1")
        if (
            self.limits.attempts < 1
            or self.limits.unit_s <= 0
            or self.limits.transient_attempts < 1
            or self.faces.survey_every < 1
            or self.ray.workers < 0
            or self.ray.workers_per_gpu < 1
        ):
            at_least_1 = "limits.attempts, limits.transient_attempts, faces.survey_every and ray.workers_per_gpu must be at least 1"
            raise ValueError(f"{at_least_1}, limits.unit_s above 0, ray.workers not below")
        if self.pairs.asks_for_similarity and not self.identity.model:
            raise ValueError("pairs.min_similarity and max_similarity compare faces: name an identity network, identity.model")
        if self.reenactor.engine == "liveportrait" and not self.reenactor.models:
            raise ValueError("reenactor.models: liveportrait needs a folder with its weights; `crosspair models list` says which")
        if not self.set_name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"shards.name becomes a folder's name: letters, digits, - and _ only, not {self.shards.name!r}")
        if not self.splits or min(self.splits.values()) < 0 or abs(sum(self.splits.values()) - 1) > 1e-6:
            raise ValueError(f"splits must be shares that sum to 1, not {self.splits}")
        if any(not name.replace("_", "").isalnum() for name in self.splits):
            raise ValueError(f"split names become file names: letters, digits and _ only, not {list(self.splits)}")

    @property
    def set_name(self) -> str:
        return self.shards.name or self.reenactor.engine


def fingerprints(config: RunConfig) -> dict[str, str]:
    """Stage name -> fingerprint: what its outputs depend on besides the unit."""
    video, engine = config.video, config.reenactor.engine
    ingest = fingerprint(Ingest.name, Ingest.version, config.ingest)
    crop = {"faces": {k: v for k, v in _fields(config.faces).items() if k != "pack"}, "fps": video.fps, "size_px": video.size_px}
    faces = fingerprint(Faces.name, Faces.version, crop, upstream=ingest)
    portraits = fingerprint(Portraits.name, Portraits.version, crop)
    identity = config.identity.fingerprint(upstream=faces + portraits)
    version, seen, drawn, weights = _engine(config.reenactor)
    of_motion = tuple(d for role, d in weights.items() if role in MOTION_WEIGHTS)
    motion = fingerprint(f"motion/{engine}", version, seen, weights=of_motion, upstream=faces)
    reenact = fingerprint(f"reenact/{engine}", version, drawn, weights=tuple(weights.values()), upstream=motion + portraits)
    controls = {"expressions": config.controls.sha256} if config.controls.expressions else {}
    if config.identity.model:
        controls["normalise"] = config.identity.normalise
    networks = (config.identity.digest,) if config.identity.model else ()
    regions = fingerprint(RegionsStage.name, RegionsStage.version, controls, weights=networks, upstream=reenact)
    prepared = {"ingest": ingest, "faces": faces, "portraits": portraits, "identity": identity}
    return prepared | {"motion": motion, "reenact": reenact, "regions": regions}


def _engine(reenactor: ReenactorConfig) -> tuple[int, dict, dict, dict[str, str]]:
    """Version, settings that motion depends on, settings that frames depend on, digests of weights by role."""
    if reenactor.engine == "meshwarp":
        settings = _fields(reenactor.meshwarp)
        return MeshWarp.version, settings, settings, {}
    options = reenactor.liveportrait
    unused = () if options.stitching else ("stitching", "retargeting")
    weights = {role: digest for role, digest in reenactor.digests.items() if role not in unused}
    return VERSION, options.motion_settings(), options.render_settings(), weights


def weights_digest(config: RunConfig) -> str:
    """One digest for all files of weights that draw the frames; "" where the engine has none."""
    weights = _engine(config.reenactor)[3]
    return digest(*(f"{role}={sha256}" for role, sha256 in sorted(weights.items()))) if weights else ""


def _fields(config: object) -> dict:
    return dict(vars(config))
