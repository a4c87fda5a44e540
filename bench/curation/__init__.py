"""``prism curate``: killed at random moments, and how fast and large it is."""
