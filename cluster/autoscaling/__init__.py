"""How many replicas each stage has: what replicas publish of their work, and policies of Ray Serve that read it."""
