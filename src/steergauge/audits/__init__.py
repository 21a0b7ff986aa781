"""Claims about a steering vector: one claim, one file, one test of itself."""
