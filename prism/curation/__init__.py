"""``prism curate``: the hardest problems, a closed teacher's answers to them, and nothing unverified. (No torch.)"""
