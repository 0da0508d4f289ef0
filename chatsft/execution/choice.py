"""Find the strongest sandbox that holds here, by trying to break out of it."""
