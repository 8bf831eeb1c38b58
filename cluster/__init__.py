"""The running system on Ray Serve: ingress, pipeline, deployments and the command line."""
