"""From a series of evaluations to something worth telling somebody. No torch."""
