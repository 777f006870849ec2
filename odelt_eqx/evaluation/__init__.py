"""Quality and cost over a grid of time steps and depths: metrics, samples, figures, a report."""
