"""The average is what its formula says, on whole tensors and on shards, and lending it to the model leaves no trace."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from model.ema import Ema, EmaConfig


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[1].bias.requires_grad_(False)
    return model


def moved(model: nn.Module, step: int) -> None:
    """As an optimizer would: something else at each step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator))


def slow_average(history: list[float], decay: float, warmup: int) -> float:
    average = history[0]
    for n, value in enumerate(history[1:]):
        d = min(decay, (1 + n) / (warmup + n))
        average = d * average + (1 - d) * value
    return average


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, 1), (0.99, 10)])
def test_it_is_what_the_formula_says(decay: float, warmup: int) -> None:
    model = net()
    ema = Ema(EmaConfig(decay=decay, warmup=warmup), model)
    history = [{k: p.detach().clone() for k, p in model.named_parameters()}]
    for step in range(30):
        moved(model, step)
        ema.update(model, step)
        history.append({k: p.detach().clone() for k, p in model.named_parameters()})
    assert set(ema.averages) == {"0.weight", "0.bias", "1.weight"}  # what is not trained needs no average
    for name, average in ema.averages.items():
        for place in ((0,) * average.ndim, (-1,) * average.ndim):
            slow = slow_average([float(h[name][place]) for h in history], decay, warmup)
            assert float(average[place]) == pytest.approx(slow, abs=1e-5)


def test_lent_to_the_model_and_taken_back() -> None:
    model = net()
    ema = Ema(EmaConfig(decay=0.9), model)
    for step in range(3):
        moved(model, step)
        ema.update(model, step)
    own, averages = {k: v.clone() for k, v in model.state_dict().items()}, {k: v.clone() for k, v in ema.averages.items()}
    places = [p.data_ptr() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt), ema.swapped(model):
        assert all(torch.equal(model.state_dict()[k], v) for k, v in averages.items())
        assert not torch.equal(model.state_dict()["0.weight"], own["0.weight"])
        raise KeyboardInterrupt
    assert all(torch.equal(v, own[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(v, averages[k]) for k, v in ema.averages.items())
    assert [p.data_ptr() for p in model.parameters()] == places


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_shards_average_as_the_whole_does(rank: int) -> None:
    """Rows dealt to three workers, unevenly: the last one gets fewer, or none. Workers exchange nothing, so one at a time will do."""
    dist.init_process_group("fake", rank=rank, world_size=3, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (3,))
        whole, sharded = net(), net()
        for module in sharded:
            for name, p in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(shard(p.detach(), mesh), requires_grad=p.requires_grad))
        ema, reference = Ema(EmaConfig(decay=0.9), sharded), Ema(EmaConfig(decay=0.9), whole)
        for step in range(4):
            moved(whole, step)
            with torch.no_grad():
                for p, q in zip(sharded.parameters(), whole.parameters(), strict=True):
                    p.to_local().copy_(shard(q.detach(), mesh).to_local())
            ema.update(sharded, step)
            reference.update(whole, step)
        with ema.swapped(sharded):
            for name, p in sharded.named_parameters():
                expected = reference.averages.get(name, whole.get_parameter(name).detach())
                assert isinstance(p, DTensor) and p.shape == expected.shape
                assert torch.equal(p.to_local(), shard(expected, mesh).to_local()), name
    finally:
        dist.destroy_process_group()


def shard(tensor: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    """This worker's rows of it."""
    return distribute_tensor(tensor.clone(), mesh, [Shard(0)], src_data_rank=None)


@pytest.mark.parametrize(("setting", "complaint"), [({"decay": 1.0}, "between 0 and 1"), ({"warmup": 0}, "at least 1")])
def test_settings_that_cannot_be_meant_are_refused(setting: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        EmaConfig(**setting)
