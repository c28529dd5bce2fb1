"""The report: run directories in, one self-contained page and its tables and figures out."""

from dembench.report.page.build import write_report

__all__ = ["write_report"]
