"""HTTP: requests in, replies out."""
