"""What judges a row's frames (`output.judges`), beside functions of the user's own.

    batchgen.judges:reference_psnr, reference_ssim   against the same row of another run

A judge raises `Skipped` for a row that it cannot say anything of.
"""

from batchgen.judges.reference import reference_psnr, reference_ssim
from batchgen.judges.skipped import Skipped

__all__ = ["Skipped", "reference_psnr", "reference_ssim"]
