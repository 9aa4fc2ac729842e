"""What exchange plugins share in talking to venues: budgets, retries; no facts of any venue."""
