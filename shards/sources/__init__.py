"""Where audio comes from when it is not a folder yet."""
