"""Outlines over the points of the face mesh, which stand in controls.npz. Right and left are the person's own.

Each loop is ordered, and begins at a corner where it has two: an eye's outer corner, the lower lid or lip, the other corner, and
back along the upper one.
"""

from __future__ import annotations

RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
NOSE = (168, 245, 188, 174, 217, 126, 142, 129, 98, 97, 2, 326, 327, 358, 371, 355, 437, 399, 412, 465)

# One step further out, or in.
RIGHT_SOCKET = (130, 25, 110, 24, 23, 22, 26, 112, 243, 190, 56, 28, 27, 29, 30, 247)
LEFT_SOCKET = (359, 255, 339, 254, 253, 252, 256, 341, 463, 414, 286, 258, 257, 259, 260, 467)
RIGHT_EYE_AND_BROW = (226, 31, 228, 229, 230, 231, 232, 233, 244, 193, 55, 107, 66, 105, 63, 70, 124)
LEFT_EYE_AND_BROW = (446, 261, 448, 449, 450, 451, 452, 453, 464, 417, 285, 336, 296, 334, 293, 300, 353)
MOUTH_AND_SKIN = (57, 43, 106, 182, 83, 18, 313, 406, 335, 273, 287, 410, 322, 391, 393, 164, 167, 165, 92, 186)
NOSE_TIP = (195, 51, 45, 220, 115, 48, 64, 98, 97, 2, 326, 327, 294, 278, 344, 440, 275, 281)

# The point on the ridge of the nose, or on its tip's ball, that is as high as each point of its outlines: in profile it is the outline.
NOSE_RIDGE = (168, 6, 197, 195, 195, 5, 45, 1, 19, 2, 2, 2, 19, 1, 275, 5, 195, 195, 197, 6)
NOSE_TIP_RIDGE = (195, 5, 4, 4, 4, 1, 1, 19, 2, 2, 2, 19, 1, 1, 4, 4, 4, 5)
