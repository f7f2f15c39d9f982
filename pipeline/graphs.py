"""ONNX files looked at before anything runs them: whole, for this runtime, of the network that their name says, and of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Shape = tuple[int | str, ...]  # a name where the graph takes any size

_KEYPOINTS = 21
_INPUTS: dict[str, tuple[str, ...]] = {
    "appearance": ("img",),
    "motion": ("img",),
    "warping_spade": ("feature_3d", "kp_driving", "kp_source"),
    "stitching": ("input",),
    "eye": ("input",),
    "lip": ("input",),
    "landmark": ("input",),
}
_OUTPUTS: dict[str, tuple[str, ...]] = {
    "appearance": ("output",),
    "motion": ("pitch", "yaw", "roll", "t", "exp", "scale", "kp"),
    "warping_spade": ("out",),
    "stitching": ("output",),
    "eye": ("output",),
    "lip": ("output",),
    "landmark": (),  # found by their shape: their names are the exporter's
}


@dataclass(frozen=True)
class GraphFacts:
    """What a graph takes and gives, by name. `made_by` is the format that our export writes, empty for others'."""

    opset: int
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    made_by: str

    def __str__(self) -> str:
        return f"opset {self.opset}: {_named(self.inputs)} -> {_named(self.outputs)}"


def open_graph(path: Path, role: str, *, thorough: bool = False) -> GraphFacts:
    """Reads a file of the catalogue's onnx layout; `thorough` lets onnx's checker go over every node.

    Raises:
        ValueError: no whole ONNX file, weights beside it, another network's, or an operator that ONNX Runtime does not have.
    """
    import onnx

    again = "download it again" if role == "landmark" else "export it again with `crosspair models export`, or download it again"
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as e:  # protobuf's and onnx's own
        raise ValueError(f"{path}: expected an ONNX file; truncated, or another kind of file: {again}") from e
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not model.graph.node or not opset:  # both stand in every file; what is cut off between two fields still parses
        raise ValueError(f"{path}: expected an ONNX file; truncated, empty, or another kind of file: {again}")
    if any(node.op_type == "GridSample3D" for node in model.graph.node):
        raise ValueError(
            f"{path}: its operator GridSample3D exists only in a TensorRT plugin (the public warping_spade-fix.onnx); "
            f"take warping_spade.onnx of the same release"
        )
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
    beside = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    if beside:  # its digest would not say what it computes
        raise ValueError(f"{path}: keeps its weights in another file ({', '.join(sorted(beside))}); save it as one file, or {again}")
    initialised = {t.name for t in model.graph.initializer}
    facts = GraphFacts(
        opset=opset,
        inputs={i.name: _shape(i) for i in model.graph.input if i.name not in initialised},
        outputs={o.name: _shape(o) for o in model.graph.output},
        made_by=next((p.value for p in model.metadata_props if p.key == "crosspair.format"), ""),
    )
    if set(facts.inputs) != set(_INPUTS[role]) or not set(_OUTPUTS[role]) <= set(facts.outputs):
        expected = f"{', '.join(_INPUTS[role])} -> {', '.join(_OUTPUTS[role]) or 'points'}"
        found = f"{', '.join(facts.inputs)} -> {', '.join(facts.outputs)}"
        raise ValueError(f"{path}: another network than its name says: expected {expected}, found {found}: {again}")
    if thorough:
        try:
            onnx.checker.check_model(str(path))
        except Exception as e:  # onnx's own, and others from broken content
            raise ValueError(f"{path}: not a valid ONNX graph ({_first_line(e)}): {again}") from e
    return facts


def of_one_model(graphs: Mapping[str, GraphFacts], folder: Path) -> None:
    """Graphs of one folder, by role, must pass values to each other.

    Raises:
        ValueError: naming what does not fit.
    """
    volume, points = [], []  # (where, size)
    if "appearance" in graphs:
        volume.append(("appearance_feature_extractor.onnx's output", graphs["appearance"].outputs["output"][1:]))
    if "warping_spade" in graphs:
        volume.append(("warping_spade.onnx's feature_3d", graphs["warping_spade"].inputs["feature_3d"][1:]))
        points.append(("warping_spade.onnx's kp_driving", graphs["warping_spade"].inputs["kp_driving"][1:2]))
    if "motion" in graphs:
        points.append(("motion_extractor.onnx's kp", tuple(_part(n, 0, 3) for n in graphs["motion"].outputs["kp"][1:])))
    for role, extra, each in (("stitching", 0, 6), ("eye", 3, 3), ("lip", 2, 3)):
        if role in graphs:
            points.append((f"the input of {role}", tuple(_part(n, extra, each) for n in graphs[role].inputs["input"][1:])))
    for what, sizes in (("volume", volume), ("keypoints", points)):
        known = [(where, size) for where, size in sizes if size and all(isinstance(n, int) for n in size)]
        for where, size in known[1:]:
            if size != known[0][1]:
                raise ValueError(
                    f"{folder}: graphs of two models: {what} of {known[0][0]} {_plain(known[0][1])}, of {where} {_plain(size)}; "
                    f"take all files from one release or one export"
                )
    for where, size in points:
        if size and isinstance(size[0], int) and size[0] != _KEYPOINTS:
            raise ValueError(
                f"{folder}: {where} has {size[0]} keypoints; the engine knows LivePortrait's {_KEYPOINTS}, each by its meaning"
            )


def _part(size: int | str, extra: int, each: int) -> int | str:
    return (size - extra) // each if isinstance(size, int) else size


def _shape(value: object) -> Shape:
    dims = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]
    return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims)


def _named(values: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {_plain(shape)}" for name, shape in values.items())


def _plain(shape: Shape) -> str:
    return "x".join(str(n) if isinstance(n, int) else "N" for n in shape)


def _first_line(e: Exception) -> str:
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)[:200]
