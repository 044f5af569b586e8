"""The small families, by the names of their folders."""

from toy_images import Toy
from toy_ltx import LTX, LTX_NOISY
from toy_qwen_image import QWEN_IMAGE
from toy_videos import VideoToy

TOYS: dict[str, Toy] = {"qwen_image": QWEN_IMAGE}
VIDEO_TOYS: dict[str, VideoToy] = {"ltx": LTX, "ltx with a noisy decoder": LTX_NOISY}
