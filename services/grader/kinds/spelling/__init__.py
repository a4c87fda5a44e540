"""How short answers are spelt: TeX and Unicode, units, multipliers and what is counted. Kinds read with it."""
