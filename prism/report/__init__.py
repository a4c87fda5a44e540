"""What a run leaves to read: ``report.json``, a page that works offline, and a table at the terminal.

Everything is made from the files in the run's folder and from nothing else; the same files give the same report.
"""
