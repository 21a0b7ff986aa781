"""How a finding's null, the number if there were nothing to see, is introduced."""

NULL_LEAD = {
    "plumbing": "If nothing were there:",
    "manipulation": "If the direction of v did not matter:",
    "equivalence": "If the two did the same, the difference would lie",
    "divergence": "If the two were one and the same:",
    "replication": "For comparison:",
    "scale": "Counted as the same:",
    "logits": "If geometry alone were at work:",
    "environments": "Asked for:",
    "reliability": "Tolerated:",
    "spectrum": "For comparison:",
    "nulls": "For comparison:",
    "saturation": "For comparison:",
    "decomposition": "If v were a random direction:",
    "alternative": "For comparison:",
    "linearity": "Asked for:",
    "gauge": "Asked for:",
    "methods": "Counted as the same:",
    "states": "For comparison:",
    "inversion": "For comparison:",
    "access": "If the prompt did nothing:",
    "density": "For comparison:",
}
"""By audit: the words before it."""
