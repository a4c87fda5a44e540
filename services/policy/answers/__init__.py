"""Chats as they are asked for and answered: what the learner sees of one, signs of life, versions of its tokens."""
