"""Side by side: pairs of responses, people's votes on them, and what follows from the votes."""
