"""What the units share with each other and with the layers of S2V."""

MOTION_FRAMES = 73
"""Frames of the past that a clip continues from."""
FOR_S2V = "what it makes is for s2v-transformer alone"
"""Why units of S2V go with no other transformer."""
