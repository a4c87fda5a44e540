"""The console: runs read from their files, jobs in SQL, and pages over both. (Never imports the trainer.)"""
