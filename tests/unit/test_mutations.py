"""``make mutations`` takes long and runs seldom: that its list still fits the code is seen here."""

import tomllib

import pytest
from mutate import LIST, ROOT, Mutant

MUTANTS = [Mutant(**each) for each in tomllib.loads(LIST.read_text())["mutant"]]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[each.name for each in MUTANTS])
def test_the_line_and_its_tests_are_there(mutant: Mutant) -> None:
    code = (ROOT / mutant.file).read_text()
    assert mutant.applied_to(code) != code
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0].rpartition('::')[2]}(" in (ROOT / file).read_text()
