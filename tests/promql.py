"""Which metrics a PromQL expression names, and which there are."""

import re

from dbserve.metrics.exposition import Scrape, store_families
from dbserve.metrics.process import HttpMetrics, process_families
from dbserve.store.counters import Totals

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

WORDS = {
    *("and", "or", "unless", "on", "by", "ignoring", "group_left", "group_right", "offset", "bool"),
    *("max", "min", "sum", "avg", "count", "bottomk", "topk", "rate", "increase", "time", "vector", "absent"),
    *("histogram_quantile", "label_replace", "clamp_min", "last_over_time"),
}


def exported() -> set[str]:
    """Names of all series that an API process may expose."""
    families = [*process_families(redis_up=True), *HttpMetrics().registry.collect()]
    families += store_families(Scrape(jobs=(), totals=Totals({})))
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def metrics_of(expression: str) -> set[str]:
    """No parser, and so strict: a word that it does not know is taken for a metric."""
    bare = re.sub(r'\{__name__=~"ray_\w+\((?:\w+\|?)+\)\w+"\}', "", expression)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", bare)
    bare = re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|on|ignoring|group_left|group_right)\s*\([^()]*\)", "", bare)
    bare = re.sub(r"\boffset\s+\w+", "", bare)
    return set(re.findall(r"(?<![\w.])[A-Za-z_:][\w:]*", bare)) - WORDS
