"""The toy: a small world whose models and data are made in a minute, with the true quality of every answer."""
