"""Questions to the services of a run that is up. Addresses and tokens come from its ``stack.json`` and stay here."""
