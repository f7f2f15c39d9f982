"""LivePortrait's networks: the published layout key for key, the reference's numbers, gradients everywhere, and errors that help."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.liveportrait import OFFICIAL, AppearanceConfig, LivePortrait, LivePortraitConfig, MotionConfig
from model.liveportrait_generator import GeneratorConfig, SpadeGenerator
from model.liveportrait_layers import SpectralConv2d, bake_spectral_norm
from model.liveportrait_warping import WarpingConfig
from model.liveportrait_weights import BASE_FILES, RETARGETING_FILE, load_liveportrait
from schemas.keypoints import HeadMotion

torch.set_num_threads(1)

TINY = LivePortraitConfig(
    appearance=AppearanceConfig(width=4, volume_channels=3, volume_depth=4, blocks=1),
    motion=MotionConfig(depths=(1, 2), dims=(4, 8)),
    warping=WarpingConfig(
        volume_channels=3, volume_depth=4, out_channels=8, compress=2, hourglass_width=3, hourglass_max=6, hourglass_levels=2
    ),
    generator=GeneratorConfig(in_channels=8, out_channels=4, middle_blocks=2, spade_hidden=6),
)
PARITY = Path("parity") / "liveportrait-tiny"
PREFIXES = {"F": "appearance", "M": "motion", "W": "warping", "G": "generator", "S": "stitching", "R_lip": "lip", "R_eye": "eye"}


@pytest.fixture(scope="module")
def tiny() -> LivePortrait:
    torch.manual_seed(0)
    return LivePortrait(TINY).eval()


@pytest.fixture
def folder(tiny: LivePortrait, tmp_path: Path) -> Path:
    """Random weights in the published layout."""
    for name, file in BASE_FILES.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        torch.save(dict(tiny.get_submodule(name).state_dict()), tmp_path / file)
    parts = {"retarget_shoulder": tiny.stitching, "retarget_mouth": tiny.lip, "retarget_eye": tiny.eye}
    wrapper = {k: {f"module.{n}": v for n, v in net.state_dict().items()} for k, net in parts.items()}
    (tmp_path / RETARGETING_FILE).parent.mkdir()
    torch.save(wrapper, tmp_path / RETARGETING_FILE)
    return tmp_path


def run_all(net: LivePortrait, given: dict[str, Tensor]) -> dict[str, Tensor]:
    volume = net.appearance(given["img"][:1])
    motion = net.motion(given["img"])
    warped = net.warping(volume, given["kp_driving"], given["kp_source"])
    both = torch.cat([given["kp_source"].expand_as(given["kp_driving"]), given["kp_driving"]], dim=1).flatten(1)
    heads = {"stitch": net.stitching(both), "eye": net.eye(given["eye_in"]), "lip": net.lip(given["lip_in"])}
    rendered = {"W_out": warped.out, "deformation": warped.deformation, "occlusion": warped.occlusion, "image": net.generator(warped.out)}
    return {"feature_3d": volume, **{f"M_{k}": v for k, v in motion._asdict().items()}, **rendered, **heads}


def some_input(frames: int = 2) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    kp = [torch.randn(n, 21, 3, generator=g) * 0.3 for n in (1, frames)]
    mlp = {f"{k}_in": torch.randn(frames, n, generator=g) for k, n in (("eye", 66), ("lip", 65))}
    return {"img": torch.rand(frames, 3, 32, 32, generator=g), "kp_source": kp[0], "kp_driving": kp[1], **mlp}


@pytest.mark.parametrize("baked", [False, True])
def test_every_tensor_of_the_reference(shared: Path, baked: bool) -> None:
    net = load_liveportrait(shared / PARITY / "weights")
    if baked:
        net.bake()
    given = {k: torch.from_numpy(v) for k, v in np.load(shared / PARITY / "in.npz").items()}
    with torch.no_grad():
        got = {k: v.numpy() for k, v in run_all(net, given).items()}
    head = HeadMotion.from_network({k.removeprefix("M_"): v for k, v in got.items() if k.startswith("M_")})
    got |= {"R": head.rotation, "x_s": head.points()}
    reference = np.load(shared / PARITY / "ref.npz")
    assert set(got) == set(reference.files)
    for name in reference.files:
        np.testing.assert_allclose(got[name], reference[name], rtol=0, atol=1e-4, err_msg=name)


def test_keys_and_shapes_at_full_width(shared: Path) -> None:
    with torch.device("meta"):
        net = LivePortrait(OFFICIAL)
    got = {name: {k: tuple(v.shape) for k, v in net.get_submodule(name).state_dict().items()} for name in PREFIXES.values()}
    assert got == published_shapes((shared / "facts" / "REENACTOR_KEYS.txt").read_text())


def published_shapes(text: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Sections `== F: 107 tensors`, lines `name  (64, 3, 3, 3)`."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in text.splitlines():
        if section := re.match(r"== (\w+):", line):
            current = shapes.setdefault(PREFIXES[section[1]], {})
        elif tensor := re.match(r"(\S+)\s+\((.*)\)$", line):
            current[tensor[1]] = tuple(int(n) for n in tensor[2].split(",") if n.strip())
    return shapes


def test_parameter_counts_at_full_width() -> None:
    with torch.device("meta"):
        net = LivePortrait(OFFICIAL)
    millions = {name: sum(p.numel() for p in net.get_submodule(name).parameters()) / 1e6 for name in PREFIXES.values()}
    published = {
        "appearance": 0.836,
        "motion": 28.119,
        "warping": 45.530,
        "generator": 55.365,
        "stitching": 0.045,
        "lip": 0.037,
        "eye": 0.145,
    }
    assert millions == pytest.approx(published, abs=0.001)


def test_shapes_and_ranges(tiny: LivePortrait) -> None:
    with torch.no_grad():
        out = run_all(tiny, some_input())
    assert out["feature_3d"].shape == (1, 3, 4, 8, 8)
    assert out["deformation"].shape == (2, 4, 8, 8, 3) and out["W_out"].shape == (2, 8, 8, 8)
    assert out["image"].shape == (2, 3, 64, 64) and out["image"].min() >= 0 and out["image"].max() <= 1


def test_frames_of_a_batch_are_independent(tiny: LivePortrait) -> None:
    given = some_input(3)
    one = given | {"kp_driving": given["kp_driving"][1:2]}  # the same source, one of the driving frames
    with torch.no_grad():
        together, alone = run_all(tiny, given), run_all(tiny, one)
        motion = tiny.motion(given["img"][1:2])
    for name in ("W_out", "deformation", "image", "stitch"):
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(together["M_kp"][1:2], motion.kp, rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter(tiny: LivePortrait) -> None:
    net = copy.deepcopy(tiny)  # in evaluation, where batch norm does not cancel the bias before it
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.ones_(module.bias)  # among two or three channels all may be below zero by chance, and ReLU passes nothing
    sum(v.square().mean() for v in run_all(net, some_input()).values()).backward()
    without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    zero = {n for n, p in net.named_parameters() if p.grad is not None and not p.grad.any()}
    assert not without and not zero


def test_training_moves_every_network() -> None:
    torch.manual_seed(2)
    net, given = LivePortrait(TINY).train(), some_input()
    target = torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = (run_all(net, given)["image"] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_spectral_norm_equals_torchs() -> None:
    torch.manual_seed(3)
    theirs = nn.utils.spectral_norm(nn.Conv2d(3, 5, 3, padding=1))
    ours = SpectralConv2d(3, 5, 3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 6, 6)
    for training in (True, True, False):  # each forward in training moves (u, v)
        ours.train(training), theirs.train(training)
        grads = []
        for net in (ours, theirs):
            net.zero_grad()
            net(x).square().sum().backward()
            grads.append(net.weight_orig.grad)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(*grads)


def test_baking_changes_no_number_and_leaves_no_spectral_norm(tiny: LivePortrait) -> None:
    baked = copy.deepcopy(tiny)
    bake_spectral_norm(baked)
    assert not [m for m in baked.modules() if isinstance(m, SpectralConv2d)]
    with torch.no_grad():
        before, after = run_all(tiny, some_input()), run_all(baked, some_input())
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)


def test_any_width_loads_with_its_sizes_read_off_the_tensors(tiny: LivePortrait, folder: Path) -> None:
    for config in (None, TINY):
        loaded = load_liveportrait(folder, config)
        assert loaded.config == TINY and not loaded.training
        state = loaded.state_dict()
        assert all(torch.equal(state[k], v) for k, v in tiny.state_dict().items())


@pytest.mark.parametrize("file", [*BASE_FILES.values(), RETARGETING_FILE])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file}: not found.*put the folders base_models and retargeting_models there"):
        load_liveportrait(folder)


@pytest.mark.parametrize("file", [*BASE_FILES.values(), RETARGETING_FILE])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(folder: Path, file: str, part: float) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=rf"{file}: expected a PyTorch file.*truncated.*download the file again"):
        load_liveportrait(folder)


class Surprise:
    """What a hostile file may hold: an object whose unpickling runs code."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("executed",)


def test_a_file_that_holds_objects_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"first.conv.weight": Surprise()}, folder / BASE_FILES["appearance"])
    with pytest.raises(ValueError, match="tensors and nothing else"):
        load_liveportrait(folder)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", BASE_FILES)
def test_swapped_files_are_named(folder: Path, name: str) -> None:
    other = "motion" if name != "motion" else "appearance"
    (folder / BASE_FILES[name]).write_bytes((folder / BASE_FILES[other]).read_bytes())
    with pytest.raises(ValueError, match=rf"{BASE_FILES[name]}: expected LivePortrait's {name} network"):
        load_liveportrait(folder)


def damage(folder: Path, file: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = torch.load(folder / file, weights_only=True)
    change(state)
    torch.save(state, folder / file)


@pytest.mark.parametrize("config", [None, TINY])
def test_missing_unexpected_and_wrongly_shaped_tensors_are_named(folder: Path, config: LivePortraitConfig | None) -> None:
    file = BASE_FILES["warping"]
    damage(folder, file, lambda s: [s.pop("fourth.bias"), s.update(extra=torch.zeros(1)), s.update({"third.conv.bias": torch.zeros(9)})])
    with pytest.raises(ValueError) as e:
        load_liveportrait(folder, config)
    for part in (file, "1 missing: fourth.bias", "1 unexpected: extra", "1 wrong shape: third.conv.bias (9,) for (8,)"):
        assert part in str(e.value)


def test_another_width_than_the_config_says_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"appearance_feature_extractor.pth: .*wrong shape: first.conv.weight \(4, 3, 3, 3\) for \(64, 3, 3, 3\)"
    ):
        load_liveportrait(folder, OFFICIAL)


def test_files_of_two_models_are_refused(folder: Path) -> None:
    other = SpadeGenerator(GeneratorConfig(in_channels=6, out_channels=4, middle_blocks=1, spade_hidden=6))
    torch.save(dict(other.state_dict()), folder / BASE_FILES["generator"])
    with pytest.raises(ValueError, match="files of one model: channels from warping to generator do not fit together: 8 and 6"):
        load_liveportrait(folder)


def test_a_wrapper_without_one_of_its_networks_is_named(folder: Path) -> None:
    damage(folder, RETARGETING_FILE, lambda s: s.pop("retarget_mouth"))
    with pytest.raises(ValueError, match=rf"{RETARGETING_FILE}: expected a dict of .*retarget_mouth is missing"):
        load_liveportrait(folder)
