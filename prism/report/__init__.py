"""What a run leaves to read: ``report.json``, a page that works offline, and a table at the terminal.

Everything is made from the files in the run's folder and from nothing else; the same files give the same report.
"""

from prism.report.arms import Comparison
from prism.report.comparison import load_comparison
from prism.report.model import Report, load_report
from prism.report.table import print_comparison, print_table
from prism.report.write import write_comparison, write_report

__all__ = [
    "Comparison",
    "Report",
    "load_comparison",
    "load_report",
    "print_comparison",
    "print_table",
    "write_comparison",
    "write_report",
]
