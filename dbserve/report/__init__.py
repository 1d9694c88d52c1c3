"""The report as a page: one self-contained HTML file drawn from contracts.report.Report."""

from dbserve.report.page import render

__all__ = ["render"]
