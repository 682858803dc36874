"""What is written for people, and what makes the parts of it that are made."""
