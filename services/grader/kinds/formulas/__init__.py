"""Formulas of kind ``math``: where one stands in a text, its TeX, what it says, and when two say the same."""
