"""Findings -> one HTML file and one audit card; no torch, no model, no network."""

from steergauge.report.page import write_report

__all__ = ["write_report"]
