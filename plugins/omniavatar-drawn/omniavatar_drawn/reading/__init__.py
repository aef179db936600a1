"""What pixels show: faces found and followed, mouths read, and how good a video is by that."""
