"""One rank of one shard: requests -> engine -> media -> journal. The only handshake between the
runner, which knows jobs, and the engine, which knows tensors."""

from batchgen.worker.entry import work

__all__ = ["work"]
