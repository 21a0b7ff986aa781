"""Contrast pairs in, steering vector out: one method, one file, one formula."""
