"""Two evaluations of the same questions, in pairs."""

from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from prism.errors import ConfigError
from prism.evaluation.suite.estimate import Paired, compare_pairs
from prism.evaluation.suite.figures import Scorer
from prism.evaluation.suite.results import Result, read_result, read_units
from prism.evaluation.suite.run import scorer_of

SAME = ("kind", "headline", "prompt_version", "scorer_version", "judge_version")


class Comparison(NamedTuple):
    benchmark: str
    figure: str
    paired: Paired


def compare(first: Path, second: Path, scorer: Scorer | None = None) -> tuple[str, list[Comparison]]:
    """A note of what differs beside the model, and each benchmark that both have.

    Raises ConfigError where they cannot be compared: other prompts, scorers or judges, or a score that is withheld.
    """
    one, other = read_result(first), read_result(second)
    if scorer is None:
        scorer = "rule_then_judge" if scorer_of(one) == scorer_of(other) == "rule_then_judge" else "rule"
    if scorer != "rule" and one["judge"] != other["judge"]:
        raise ConfigError(
            f"{first} was judged by {one['judge']}, {second} by {other['judge']}: compare by --scorer rule"
        )
    names = [name for name in one["benchmarks"] if name in other["benchmarks"]]
    if not names:
        raise ConfigError(f"{first} and {second} have no benchmark in common")
    out: list[Comparison] = []
    for name in names:
        figures, others = one["benchmarks"][name], other["benchmarks"][name]
        keys = [key for key in SAME if figures[key] != others[key] and (key != "judge_version" or scorer != "rule")]
        if keys:
            raise ConfigError(f"{name}: {', '.join(keys)} differ; evaluate both with the same version of PRISM")
        for folder, result in ((first, one), (second, other)):
            score = result["benchmarks"][name]["views"]["seen"]["scores"].get(scorer)
            if why := score["why"] if score else f"no judge was asked, so that there is no score by {scorer}":
                raise ConfigError(f"{folder}, {name}: {why}")
        own, theirs = (
            read_units(folder, name, half["kind"], half["n"], scorer)[half["headline"]]
            for folder, half in ((first, figures), (second, others))
        )
        if paired := compare_pairs(own, theirs):
            out.append(Comparison(name, figures["headline"], paired))
    return _differs(one, other), out


def _differs(one: Result, other: Result) -> str:
    names = [name for name in ("sampling", "system") if one[name] != other[name]]
    return f"differ beside the model: {', '.join(names)}" if names else ""


def comparison_table(first: str, second: str, comparisons: list[Comparison]) -> Table:
    table = Table("benchmark", "figure", title=f"{second} minus {first}, in points")
    for name in (
        "difference",
        "95 % interval",
        "p (bootstrap)",
        "p (McNemar)",
        f"only {first}",
        f"only {second}",
        "pairs",
    ):
        table.add_column(name, no_wrap=True)
    for name, figure, paired in comparisons:
        table.add_row(
            name,
            figure,
            f"{100 * paired.difference:+.1f}",
            f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}",
            f"{paired.p_bootstrap:.4f}",
            "–" if paired.p_mcnemar is None else f"{paired.p_mcnemar:.4f}",
            str(paired.first_only),
            str(paired.second_only),
            f"{paired.pairs}" + (f" ({paired.unpaired} left out)" if paired.unpaired else ""),
        )
    return table
