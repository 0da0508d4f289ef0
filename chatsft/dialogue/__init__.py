"""A dialogue with a model: its turns, the answers as they come, in the terminal and on a web page."""
