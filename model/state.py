"""What training needs to go on, as tensors: each worker writes its own shards, and any number of workers reads them.

torch.distributed.checkpoint keeps a table of the tensors in `.metadata`, which is a pickle. It is read here with nothing but torch's own
classes allowed, and no object but tensors is ever kept beside it. Even so these files are for the run that wrote them; what is handed to
others is an export, plain safetensors.
"""

from __future__ import annotations

import errno
import pickle
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.optim import Optimizer

from model.ema import Ema
from model.workers import Workers

MODEL, EMA = "model.", "ema."  # what the names of weights and of their averages begin with
_ROOT = "training"  # one entry at the top: torch makes two notes in its log for each
_DAMAGE = ("Missing key", "PytorchStreamReader", "Invalid magic", "unexpected EOF")  # in RuntimeErrors of torch's readers
_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a worker alone wants it so


def weights_of(model: nn.Module, *, frozen: bool, prefix: str = MODEL) -> dict[str, Tensor]:
    """The model's own tensors by name: what is trained, tables that travel with it, and what is not trained if `frozen`."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    state: dict[str, Tensor] = model.state_dict()
    return {prefix + name: tensor for name, tensor in state.items() if frozen or trained.get(name, True)}


def training_state(model: nn.Module, optimizer: Optimizer, ema: Ema | None, *, frozen: bool) -> dict[str, Tensor]:
    """Weights, averages and AdamW's moments. The very tensors: what is loaded into them is loaded into the training.

    Moments that are not there yet, before the first step, are made.
    """
    state = weights_of(model, frozen=frozen)
    if ema is not None:
        state |= {EMA + name: average for name, average in ema.averages.items()}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        moments = optimizer.state[p]
        if not moments:
            moments["step"] = torch.zeros((), dtype=torch.float32)
            moments.update({what: torch.zeros_like(p, memory_format=torch.preserve_format) for what in _MOMENTS})
        state |= {f"optimizer.{what}.{name}": moments[what] for what in ("step", *_MOMENTS)}
    return state


def save(state: Mapping[str, Tensor], folder: Path, workers: Workers) -> Future[Any]:
    """Copies the tensors, then writes the copies in a thread; the future ends, on every worker, when all have written theirs."""
    written = dcp.async_save(
        {_ROOT: dict(state)}, storage_writer=FileSystemWriter(folder), process_group=workers.saving, no_dist=workers.world == 1
    )
    assert isinstance(written, Future)
    return written


def settled(written: Future[Any], folder: Path) -> None:
    """Waits for what `save` began in `folder`. Raises ValueError when the disk is full, RuntimeError when another worker is gone."""
    with _as_value_error(f"{folder}: a checkpoint cannot be written; is the disk full?"):
        written.result()


def check_whole(folder: Path) -> None:
    """Raises ValueError when not all workers' files are in this folder."""
    files = {info.relative_path for info in (_Reader(folder).read_metadata().storage_data or {}).values()}
    if missing := sorted(name for name in files if not (folder / name).is_file()):
        raise ValueError(f"{folder}: {missing[0]} of another worker is not here: `out` must lie on a disk that all workers share")


def load(state: Mapping[str, Tensor], folder: Path, workers: Workers) -> None:
    """Into the tensors of `state`, whatever number of workers wrote them.

    Raises:
        ValueError: damaged files, or tensors missing or of another size.
    """
    with _as_value_error("cannot be read"):
        dcp.load({_ROOT: dict(state)}, storage_reader=_Reader(folder), process_group=workers.saving, no_dist=workers.world == 1)


@contextmanager
def _as_value_error(what: str) -> Iterator[None]:
    """What trying again cannot mend becomes a ValueError: damage, or a full disk. Another worker's death or a disk that fails do not.

    torch's own exception for these is no `Exception`, and hides the first ones in a traceback of its own.
    """
    try:
        yield
    except CheckpointException as e:
        errors = [error for error, _ in e.failures.values()]
        error = next((error for error in errors if not _is_final(error)), errors[0])
        raise (ValueError if _is_final(error) else RuntimeError)(f"{what}: {_in_a_line(error)}") from e
    except Exception as e:
        if not _is_final(e):
            raise
        raise ValueError(f"{what}: {_in_a_line(e)}") from e


def _is_final(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, RuntimeError):  # gloo's and NCCL's too are plain ones
        return not isinstance(error, dist.DistError) and any(word in str(error) for word in _DAMAGE)
    return True


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as f:
            metadata = _OnlyTorch(f).load()
        if not isinstance(metadata, Metadata):
            raise ValueError(".metadata holds no table of tensors")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _OnlyTorch(pickle.Unpickler):
    """Knows the classes of a checkpoint's table, and no function that could do anything."""

    _KNOWN = (
        *(("torch.distributed.checkpoint.metadata", n) for n in (
            *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
            *("StorageMeta", "_MEM_FORMAT_ENCODING"),
        )),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.distributed.checkpoint.planner", "WriteItemType"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f".metadata names {module}.{name}, which no checkpoint of ours does")
