"""What tables do to texts, undone the same way wherever rows are read: for training, and for grading."""

import math

from pydantic import ConfigDict

NUMBERS_ARE_TEXTS = ConfigDict(coerce_numbers_to_str=True)
"""A column of numbers may stand for texts: 7 is "7", as an id or a gold answer. (True and false are no numbers.)"""


def without_nan(row: object) -> object:
    """The row without what is NaN, alone or in a list: tables write it for what is not there.

    It would become the text "nan", which itself may be an answer. What is no row is given back as it is.
    """
    if not isinstance(row, dict):
        return row
    for value in row.values():
        if isinstance(value, float) or (isinstance(value, list) and float in map(type, value)):
            break
    else:
        return row
    return {
        key: [one for one in value if not _is_nan(one)] if isinstance(value, list) else value
        for key, value in row.items()
        if not _is_nan(value)
    }


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
