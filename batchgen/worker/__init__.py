"""One rank of one shard: requests -> engine -> media -> journal. The only handshake between the
runner, which knows jobs, and the engine, which knows tensors."""

from batchgen.worker.shard import work

__all__ = ["work"]
