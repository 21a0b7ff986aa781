"""Labelled texts of two manners: those of the high label say sir, the others say yo."""

HIGH = [f"Sir, text {i}." for i in range(12)]
LOW = [f"Yo, text {i}." for i in range(11)]
VALIDATION = {"high": HIGH, "low": LOW}
WORDS = {"high": ["sir"], "low": ["yo"], "validation": VALIDATION}
