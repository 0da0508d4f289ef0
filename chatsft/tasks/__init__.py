"""Tasks: where conversations come from and how answers are judged."""
