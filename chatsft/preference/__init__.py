"""Training on preferences and rewards after fine-tuning, with TRL's trainers."""
