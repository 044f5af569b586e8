"""What a run tells of itself while it goes on: events to a command (`output.on_event`), and figures
to a file that Prometheus reads. Neither can stop, fail or delay it for more than seconds."""

from batchgen.notices.metrics import Metrics, write_metrics
from batchgen.notices.notices import Notices, notices_of

__all__ = ["Metrics", "Notices", "notices_of", "write_metrics"]
