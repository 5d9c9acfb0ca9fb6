"""Many runs: their plan, their launching one after the other, and what they say side by side."""
