"""The small image families, by the names of their folders."""

from toy_flux2_klein import KLEIN
from toy_hunyuan_dit import HUNYUAN_DIT
from toy_images import Toy
from toy_qwen_image import QWEN_IMAGE
from toy_sd3 import SD3
from toy_z_image import Z_IMAGE

TOYS: dict[str, Toy] = {
    "flux2_klein": KLEIN,
    "hunyuan_dit": HUNYUAN_DIT,
    "qwen_image": QWEN_IMAGE,
    "sd3": SD3,
    "z_image": Z_IMAGE,
}
