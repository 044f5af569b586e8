"""The small video families."""

from toy_hunyuan_video import HUNYUAN_VIDEO
from toy_ltx import LTX, LTX_NOISY
from toy_videos import VideoToy

VIDEO_TOYS: dict[str, VideoToy] = {
    "hunyuan_video": HUNYUAN_VIDEO,
    "ltx": LTX,
    "ltx with a noisy decoder": LTX_NOISY,
}
