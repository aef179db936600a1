"""Several ranks for one video: who is in the world, how ranks are grouped, how tokens and attention are spread."""
