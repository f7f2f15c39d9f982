"""Under Ray Train: one worker, end to end, resumed, and the user's mistakes told before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from model.settings import SheetConfig, TrainConfig
from model.train import main, train
from model.trainer import LOG_NAME, Trainer, read_log


@pytest.mark.usefixtures("ray_session")
def test_a_worker_trains_resumes_and_equals_the_bare_loop(config: TrainConfig, tmp_path: Path) -> None:
    records: list[dict[str, float]] = []
    first = train(replace(config, steps=3), records.append)
    assert first.steps == 3 and [r["step"] for r in records] == [1, 2, 3]
    assert [r["loss"] for r in records] == first.losses and all(0 < x < 100 for x in first.losses)

    result = train(replace(config, sheet=SheetConfig(steps=1, rows=2)), records.append)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert result.sheet is not None and result.sheet.is_file() and result.checkpoint.name == "step-000006"
    base = SD3Transformer2DModel.from_pretrained(result.checkpoint, subfolder="transformer")

    bare = Trainer(replace(config, out=tmp_path / "bare"))
    bare.train()
    assert [r["loss"] for r in read_log(tmp_path / "bare" / LOG_NAME)] == result.losses
    assert all(torch.equal(v, bare.model.base.state_dict()[k]) for k, v in base.state_dict().items())

    assert train(replace(config, sheet=SheetConfig(steps=1, rows=2))) == result  # complete: nothing is started


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(f"shards: {tmp_path}\nout: {tmp_path}/out\n")
    with pytest.raises(ValueError, match="no index"):
        main(path, [])
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        main(path, ["stepz=3"])
    assert not (tmp_path / "out").exists()
