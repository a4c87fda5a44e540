"""The console: started on this machine, and its jobs from the command line."""
