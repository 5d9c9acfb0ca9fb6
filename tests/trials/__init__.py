"""The trials of tests/campaign.py, a file for each kind."""
