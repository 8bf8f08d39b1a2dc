"""Run ten or 170,000 chat requests through the GPU you own."""
