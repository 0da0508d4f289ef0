"""From conversations to training batches: load, render, pack, collate."""
