"""The single-process loop: the platform's learners without its services. It is not the platform."""
