"""Campaigns: long, seeded attempts to make a run lose, double or mistake something."""
