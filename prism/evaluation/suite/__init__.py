"""``prism evaluate``: questions to any server, samples kept one a line, scorers side by side, figures with errors."""
