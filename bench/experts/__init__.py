"""Scoring speed of an expert's service, beside what a user would pick instead."""
