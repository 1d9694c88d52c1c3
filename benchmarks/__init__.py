"""Measurements, each of which can be run again: python -m benchmarks.<name>"""
