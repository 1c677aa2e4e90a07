"""What is asked of a trained model, or of several trainings, beyond the table of the test."""
