"""What a data set is, seen without decoding it: where its shards lie, what they hold, how its rows are split.

Free of torch. The worker's side (decoding, batches) is workers.data.
"""

from dbserve.datasets.inspection import inspect

__all__ = ["inspect"]
