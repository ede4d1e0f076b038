"""accelerate configurations, one a hardware shape."""
