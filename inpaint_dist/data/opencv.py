"""OpenCV, imported once for the whole package: with a limit on what it decodes, and a cure where it does not load.

`from inpaint_dist.data.opencv import cv2` instead of `import cv2`. OpenCV reads its pixel limit while it loads, so that
the limit has to stand in the environment before.
"""

import os

from inpaint_dist.errors import UserError

MAX_PIXELS_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"

_given = os.environ.setdefault(MAX_PIXELS_VARIABLE, str(1 << 27))

MAX_PIXELS = int(_given) if _given.isdecimal() else 1 << 27
"""Pictures of more pixels are refused before they are decoded: 134 million (400 MB as RGB) unless the environment says
otherwise. A PNG of half a megabyte can hold more."""

try:
    import cv2 as cv2
except ImportError as error:
    raise UserError(
        f"OpenCV does not load on this machine ({error}); the build without a display needs no such library: "
        "pip install --force-reinstall --no-deps opencv-python-headless"
    ) from error
