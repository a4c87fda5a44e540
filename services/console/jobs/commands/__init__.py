"""The commands that can be jobs, a file each; a file's ``COMMANDS`` are found by themselves."""
