"""Speed and memory of a policy update, beside what a user would pick instead."""
