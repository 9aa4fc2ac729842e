"""Configuration: read, checked whole, with the place of every problem."""
