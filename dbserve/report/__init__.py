"""The report as a page: one self-contained HTML file drawn from contracts.report.Report (page.render)."""
