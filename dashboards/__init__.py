"""Grafana dashboards as code: one module a dashboard, its JSON beside it, written by `make dashboards`."""
