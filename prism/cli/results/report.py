"""``prism report``: what a run has left, as a page."""

from prism import logs
from prism.cli.options import RunFolder


def report(run_dir: RunFolder) -> None:
    """Write report.html and report.json from what a run has left so far, and print its table."""
    from prism.report.table import print_table
    from prism.report.write import write_report

    console = logs.console()
    print_table(write_report(run_dir), console)
    console.print(f"report: {run_dir / 'report.html'}")
