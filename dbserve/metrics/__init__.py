"""Every metric name. The store's snapshots become metric families at each scrape; nothing is kept per job.

Every process that serves the API exports the same snapshot, and besides what it counts itself (process.py). Series of a
job are there while it runs, and for some minutes after: the store chooses which jobs those are. Cardinality is bounded
by them.
"""

from dbserve.metrics.exposition import Scrape, render
from dbserve.metrics.process import HttpMetrics

__all__ = ["HttpMetrics", "Scrape", "render"]
