"""See what is trained: tokens with their masks, counts by source, and what looks wrong."""
