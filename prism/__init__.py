"""PRISM: what every service shares. Importing this package pulls in no torch."""
