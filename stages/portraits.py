"""Portraits: cut one still of a person out of an image file, by the crop rule of the clips."""

from __future__ import annotations

from typing import Any

import numpy as np

from schemas.ids import portrait_id, portrait_id_of_frame
from schemas.outcomes import Rejection
from schemas.units import Clip, PortraitUnit, SourceFile
from stages.content import check_content, read_content
from stages.encode import encode_png
from stages.faces import STILL, TRACK, FacesConfig, encode_track
from stages.follow import cut_square
from stages.gates import score
from stages.head import crop_square, face_boxes
from stages.iris import iris_contrast
from stages.measures import picture_scores, track_scores
from stages.media import check_readable
from stages.mesh import FaceMesh
from stages.outputs import Outputs
from stages.stills import read_image
from stages.survey import SAME_FACE, overlap


class Portraits:
    """Image file -> portrait."""

    name, version = "portraits", 3

    def __init__(self, config: FacesConfig, size_px: int) -> None:
        self.config, self.size_px = config, size_px
        self._survey = config.survey()
        self._mesh = FaceMesh(static=True)

    def __call__(self, source: SourceFile, out: Outputs) -> tuple[dict[str, Any], list[PortraitUnit]]:
        """What was measured, and one portrait. Raises Rejection: no_face, several_faces, or for input that is no image."""
        path = out.source(source)
        check_readable(path)
        content, stamp = read_content(path)
        try:
            picture = read_image(path)
        finally:
            check_content(path, content, stamp)
        seen = self._survey.look(picture)
        if not seen:
            raise Rejection("no_face", f"{path}: no face")
        face = seen[0]
        if any(other.size >= 0.5 * face.size for other in seen[1:]):
            raise Rejection("several_faces", f"{path}: {len(seen)} faces of comparable size", {"faces": len(seen)})
        wh = picture.shape[1::-1]
        crop = crop_square(face.box[None], self.config.crop_scale, wh)
        image = cut_square(picture, crop, self.size_px)
        points = self._mesh(image)
        if points is None:
            raise Rejection("no_face", f"{path}: the face is lost in its own crop")
        x0, y0, side = crop
        if overlap(face_boxes(points[None])[0] * side / self.size_px + [x0, y0, x0, y0], face.box) < SAME_FACE:
            raise Rejection("several_faces", f"{path}: another face stands too near to the largest", {"faces": len(seen)})
        name = portrait_id(content)
        out.write(f"{name}.{STILL}", encode_png(image))
        out.write(f"{name}.{TRACK}", encode_track(points[None], np.zeros(1, np.int32)))
        shown = picture_scores(image, points)
        scores = {
            **score(points[None], crop[2], self.size_px),
            **track_scores(points[None], crop, wh, self.size_px),
            "other_faces": 0.0,
            "hidden": face.hidden,
            "brightness": shown.luma,
            "clipped": shown.clipped,
            "sharpness": shown.sharpness,
            "iris_contrast": iris_contrast(image, points),
        }
        portrait = PortraitUnit(
            id=name,
            source=source,
            clip="",
            content=content,
            size_px=self.size_px,
            folder=out.folder,
            image=f"{name}.{STILL}",
            track=f"{name}.{TRACK}",
            frame=0,
            digests=dict(out.digests),
            scores=scores,
        )
        data = {
            "content": content,
            "size_bytes": stamp.size_bytes,
            "mtime_ns": stamp.mtime_ns,
            "width": picture.shape[1],
            "height": picture.shape[0],
        }
        return data, [portrait]


def portrait_of_clip(clip: Clip) -> PortraitUnit:
    """The clip's own still as a portrait: no new file is needed."""
    files = {clip.file(name): clip.digests[clip.file(name)] for name in (STILL, TRACK)}
    return PortraitUnit(
        id=portrait_id_of_frame(clip.id, clip.still_frame),
        source=clip.source,
        clip=clip.id,
        content=clip.content,
        size_px=clip.size_px,
        folder=clip.folder,
        image=clip.file(STILL),
        track=clip.file(TRACK),
        frame=clip.still_frame,
        digests=files,
        scores=clip.still_scores,
    )
