"""One offline HTML page of a run: what it drew, and where its time went.

`source.py` brings the catalog up to date and reads it in pieces. `figures.py`, `timeline.py`,
`failures.py` and `sheet.py` each take in the pieces and keep little of them. `data.py` is what the
page is told; `page.py` puts that and the files of `assets/` together. The scripts there make every
element by hand and set its text, so that nothing that a prompt or an error says becomes HTML.
`assets/uPlot*` is uPlot 1.6.32 (MIT), as published.
"""

from __future__ import annotations

from batchgen.report.write import write_report

__all__ = ["write_report"]
