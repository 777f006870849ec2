"""Quality, cost, and what they look like: the map over time steps and depth."""
