"""Training the two-view prior: data, objective, trainer."""
