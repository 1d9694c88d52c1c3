"""The chart, without a cluster."""
