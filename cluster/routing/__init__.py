"""How requests choose a replica of a stage: Ray Serve request routers, one policy each."""
