"""``python -m bench.mutants``: right answers with one thing changed. No mutant may stay right if it means another.

A digit, a sign, a unit, a letter, the order, a bound, a month, am or pm is changed, in 10,000 answers of each kind.
What a mutant means is reckoned from the values it was written from, by sympy, fractions, datetime or identity, and
never by the grader's parsers.
"""

import sys
from collections import Counter

from rich.table import Table

from bench.mutants.forms import FORMS
from bench.mutants.mutate import survivors
from bench.shared import command_line, console


def main() -> None:
    parser = command_line("bench.mutants", __doc__)
    parser.add_argument("--count", type=int, default=10_000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=sorted(FORMS), default=list(FORMS))
    options = parser.parse_args()
    table = Table(
        "kind", "mutants", "mean the same", "wrong, as they should be", "unreadable", "rewarded", "right lost"
    )
    failed = False
    for kind in options.kinds:
        seen: Counter[str] = Counter()
        for line in survivors(kind, options.count, options.seed, seen):
            failed = True
            console.print(f"{kind}: {line}", markup=False)
        table.add_row(
            kind, *(str(seen[name]) for name in ("mutants", "same", "wrong", "unreadable", "rewarded", "lost"))
        )
    console.print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
