"""What to run, where it is kept, and how it becomes findings."""
