"""Grafana dashboards, alerts and recording rules, written in Python and generated into the chart.

Everything derives from `trimwheel_api.metrics`; nothing here is imported at run time by another
part. `python -m trimwheel_dashboards.generate` writes the one committed copy.
"""
