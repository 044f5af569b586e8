"""The small video families."""

from toy_cogvideox import COGVIDEOX, COGVIDEOX_2B, COGVIDEOX_NEWER
from toy_hunyuan_video import HUNYUAN_VIDEO
from toy_hunyuan_video15 import HUNYUAN_VIDEO15
from toy_ltx import LTX, LTX_NEWER, LTX_NOISY
from toy_videos import VideoToy

VIDEO_TOYS: dict[str, VideoToy] = {
    "cogvideox 2b": COGVIDEOX_2B,
    "cogvideox 1.5": COGVIDEOX_NEWER,
    "cogvideox": COGVIDEOX,
    "hunyuan_video": HUNYUAN_VIDEO,
    "hunyuan_video15": HUNYUAN_VIDEO15,
    "ltx": LTX,
    "ltx 0.9.5": LTX_NEWER,
    "ltx with a noisy decoder": LTX_NOISY,
}
