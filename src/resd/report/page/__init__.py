"""`resd report`: what a run came to, as one HTML file that needs nothing else."""

from resd.report.page.build import run_page, write_page

__all__ = ["run_page", "write_page"]
