"""The store: the one place that knows Redis keys.

Live state lies in hashes and is the truth; streams are history. Every write may be run twice: what a lost answer left
unknown is simply written again. TTLs exist on idempotency records and the reconciler's lease alone.
"""

from dbserve.store.jobs import JobStore

__all__ = ["JobStore"]
