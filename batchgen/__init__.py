"""batchgen: batch offline rendering of diffusion models, from a Parquet manifest to a catalog.

import batchgen

batchgen.plan("jobs/demo.yaml").forecast.wall_hours
started = batchgen.submit("jobs/demo.yaml", "tag=first")
batchgen.status(started.run).ok
batchgen.resume(started.run)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.api import collect as collect
    from batchgen.api import decode as decode
    from batchgen.api import plan as plan
    from batchgen.api import resume as resume
    from batchgen.api import run as run
    from batchgen.api import status as status
    from batchgen.api import submit as submit
    from batchgen.api import verify as verify
    from batchgen.api import write_report as write_report

__version__ = "0.1.0"
__all__ = [
    "collect",
    "decode",
    "plan",
    "resume",
    "run",
    "status",
    "submit",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> object:
    """The verbs, imported when first asked for: `import batchgen` alone stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'batchgen' has no attribute {name!r}")
    from batchgen import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
