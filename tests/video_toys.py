"""The small video families."""

from toy_ltx import LTX, LTX_NOISY
from toy_videos import VideoToy

VIDEO_TOYS: dict[str, VideoToy] = {"ltx": LTX, "ltx with a noisy decoder": LTX_NOISY}
